"""Every component of every family against the contract of its family; new files need no edit here.

`volumediff.contracts` holds the contracts, so that outsiders run them on their own classes.
"""

import sys

import pytest
from child_processes import run_program
from data_sets import CONVENTIONS, SETS
from guided_reference import published
from lesion_masks import MASKS
from probe_models import anchor_of_halves, probe_of_halves, residual_of_halves

from volumediff import config
from volumediff.contracts import check, covered
from volumediff.contracts.__main__ import main
from volumediff.contracts.metrics import shipped_metrics
from volumediff.errors import UsageError

# Arguments without which a component cannot be built; all others are checked as they are.
CLASSES = {"name": "class_conditional", "attribute": "group", "values": ["a", "b"], "drop": 0.0}
ARGUMENTS = {
    ("conditioner", "chain"): {"parts": ["concat", "pyramid"]},
    ("corruption", "pasted"): {"masks": str(MASKS)},
    ("fitted", "pixel_classifier"): {"supervision": "full"},
    ("label_ensemble", "times"): {"levels": [0.1, 0.3]},
    ("label_ensemble", "consensus"): {"readers": 3},
    ("label_post", "min_component"): {"volume_ml": 0.05},
    ("task", "state_classifier"): {"recipe": CLASSES},
    ("task", "residual_segmenter"): {"recipe": "synthetic_anomalies"},
    ("label_ensemble", "members"): {"runs": ["fold1", "fold2"]},
    ("task", "probe"): {"recipe": "label_diffusion"},
    ("task", "trajectory"): {"student": {"states": 2, "teacher_steps": 4}},
    ("predictor", "anchor"): {"model": anchor_of_halves()},
    ("predictor", "probe"): {"model": probe_of_halves()},
    ("predictor", "residual"): {"model": residual_of_halves()},
    ("task", "segmentation"): {"recipe": "label_diffusion"},
    ("task", "pretraining"): {"pretext": "rotation"},
    ("task", "feature_distillation"): {"recipe": "label_diffusion"},
    ("task", "guided"): {"recipe": {**CLASSES, "drop": 0.1}},
    ("task", "reflow"): {"student": {"steps": 2, "from_steps": 2}},
}
MORE = [
    ("space", "wavelet", {"wavelet": "db2"}),
    ("space", "wavelet", {"levels": 2}),
    ("space", "wavelet", {"wavelet": "coif1", "axes": "hw"}),
    ("space", "slices", {"inner": {"name": "wavelet", "axes": "hw"}, "axis": "w"}),
    ("kernel", "gaussian", {"prediction": "eps"}),
    ("kernel", "gaussian", {"prediction": "x0", "weighting": "v"}),
    ("kernel", "gaussian", {"schedule": "rectified", "prediction": "u"}),
    ("kernel", "edm", {"schedule": "exploding", "sigma_data": 0.5, "weighting": "min_snr"}),
    ("kernel", "edm", {"schedule": "rectified"}),
    ("schedule", "exploding", {"sigma_max": 2000.0, "rho": 1.0}),
    ("sampler", "ddim", {"eta": 1.0}),
    ("sampler", "ancestral", {"variance": 1.0}),
    ("recipe", "healthy", {"atlas": True, "reference": True}),
    ("recipe", "inpainting", {"edges": 2.0}),
    ("recipe", "label_diffusion", {"raters": "drawn"}),
    ("recipe", "label_diffusion", {"raters": "consensus"}),
    ("recipe", "pseudo_healthy", {"mirror": True, "contrast": 1.0, "atlas": True}),
    ("recipe", "local_noise", {"tell": False, "mask_loss": 0.1}),
    ("map", "perceptual", {"distance": "l2"}),
    ("coding", "signed", {"absent": 0.0}),
    ("coding", "distance", {"limit_mm": 4.0, "ramp_mm": 2.0}),
    ("label_post", "threshold", {"probability": 0.3}),
    ("segmenter", "composed", {"fusion": "vote", "ensemble": ["flips"], "batch": 2}),
    ("map", "product", {"maps": ["l1", {"name": "ssim", "sigma_mm": 3.0}]}),
    ("editing", "inpaint", {"selector": "given"}),
    ("guidance", "sum", {"terms": ["dynamic_clipping"], "weights": [0.5]}),
    *(("network", name, {"attention_levels": [1]}) for name in ("guided", "pseudo3d", "unet")),
    ("network", "guided", {"skips": "concatenated", "steps": 2}),
    ("network", "monai_unet", {"attention_levels": [1], "head_size": 2}),
    ("network", "flowlet", {"attention_levels": [1], "heads": 2, "condition": 6}),
    ("autoencoder", "kl", {"adversarial": 0.1}),
    *(
        ("task", "pretraining", {"pretext": name})
        for name in ({"name": "moco", "queue": 4}, "byol", "mae")
    ),
    ("task", "foreign_tasks:Distillation", {}),
    ("task", "foreign.foreign_volumes.tasks:Supervised", {}),
    ("autoencoder", "vq", {"norm": "voxel"}),
]
# Volumes that a layout leaves out without a word: other versions of what it takes, and helpers.
UNUSED = {
    "wmh": ["**/orig/*"],
    "mslub": ["**/*brainmask.nii.gz"],
    "msseg2008": ["*_byCHB/**/*.raw"],
    "msseg2015": ["**/orig/*"],
    "msseg2016": ["**/Raw_Data/*", "**/Brain_Mask.nii.gz"],
    "bids": ["**/*_votes.nii.gz"],
    "folder": ["**/*_votes.nii.gz"],
    "ixi": ["IXI-DTI/*"],
    "chexpert": ["**/patient00003/**/*"],  # not in the table of labels
    "luna16": ["seg-lungs/*"],
    "lidc": ["**/3000923-62357/*"],
}
CHECKPOINTS = {
    "wdm": {"inputs": 8, "outputs": 8, "widths": (8, 16, 8), "blocks": 2, "pooled": True},
    "cwdm": {"inputs": 32, "outputs": 8, "widths": (8, 16), "pooled": True, "joined": True},
    "fastwdm3d": {"inputs": 24, "outputs": 8, "widths": (8, 16), "blocks": 4, "pooled": True},
    "patchddm": {"inputs": 8, "outputs": 1, "widths": (5, 15, 10), "blocks": 2, "pooled": False},
}

SHIPPED = [
    (family, name)
    for family in covered()
    for name in config.available(family)
    if family not in ("layout", "importer")
]


def test_every_family_has_a_contract():
    assert covered() == config.families()
    assert all(config.available(family) for family in covered())


@pytest.mark.parametrize(("family", "name"), SHIPPED)
def test_component(family, name):
    check(family, name, **ARGUMENTS.get((family, name), {}))


@pytest.mark.parametrize(("family", "name", "arguments"), MORE)
def test_component_with_other_arguments(family, name, arguments):
    check(family, name, **arguments)


@pytest.mark.parametrize("name", config.available("layout"))
def test_layout(name, tmp_path):
    examples = SETS | CONVENTIONS
    assert name in examples, f"write a small example of {name} in data_sets.py"
    root = tmp_path / "download"
    root.mkdir()
    examples[name](root)
    check("layout", name, root=root, unused=UNUSED.get(name, []))


@pytest.mark.parametrize("name", config.available("importer"))
def test_importer(name):
    tensors = published(**CHECKPOINTS[name]) if name in CHECKPOINTS else None
    check("importer", name, tensors=tensors)


@pytest.mark.parametrize("name", shipped_metrics())
def test_metric(name):
    check("metric", name)


def test_metrics_are_found():
    assert {"average_precision", "auroc"} <= {n.partition(":")[2] for n in shipped_metrics()}
    with pytest.raises(UsageError, match="metric 'dice': expected package"):
        check("metric", "dice")


@pytest.mark.parametrize("family", config.families())
def test_names_and_lines_are_those_of_the_classes(family):
    # names and lines are read from the sources, classes are imported: both must agree
    lines = config.described(family)
    assert list(lines) == config.available(family)
    for name, line in lines.items():
        cls = config.component(family, name)
        assert config.reference(cls) == name
        assert config.family_of(cls) == family
        own = sys.modules[cls.__module__] if config.FAMILIES[family].folder else cls
        assert " ".join(own.__doc__.split()).startswith(line.rstrip("."))
        assert 20 <= len(line) <= 140, f"{family} {name} says too little, or too much: {line}"


def test_listing_imports_nothing_heavy():
    code = (
        "import sys; from volumediff import config; "
        "[config.described(f) for f in config.families()]; "
        "print([m for m in ('torch', 'numpy', 'volumediff.spaces') if m in sys.modules])"
    )
    assert run_program([sys.executable, "-c", code]).stdout.strip() == "[]"


def test_the_command_says_what_it_found(capsys):
    assert main(["post", "smooth", "sigma_mm=1e-1"]) == 0
    assert capsys.readouterr().out == "post smooth: keeps the contract.\n"
    assert main(["post", "smoothe"]) == 2
    assert "Did you mean 'smooth'?" in capsys.readouterr().err
    assert main([]) == 2
    assert "Families: adaptation, " in capsys.readouterr().err


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(UsageError, match="'mapp' is no family of components"):
        check("mapp", "l1")
    with pytest.raises(UsageError, match="expected root=FOLDER, a small example"):
        check("layout", "mood")
    with pytest.raises(UsageError, match=r"map\.radius: L1 takes no arguments"):
        check("map", "l1", radius=3)
