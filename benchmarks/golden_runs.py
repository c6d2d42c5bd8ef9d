"""What the golden record trains and calls: tiny runs of every kind, and which of them methods get.

Names of configurations, methods, blocks and words are those that a user would write.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "ALSO",
    "EXTENT_MM",
    "FOLDERS",
    "LONGER",
    "METHOD",
    "METHODS",
    "OTHERS",
    "RUNS",
    "Method",
    "Run",
    "names_of",
    "quick",
    "shipped_run",
    "small",
    "small_side",
]

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = "anomaly"
FOLDERS = (
    "autoencoders",
    "pipelines",
    "classifiers",
    "residual_segmenters",
)  # what is trained, in order

SIDE = {64: 16, 128: 32, 256: 32}  # voxels of a configuration's volumes -> voxels here
EXTENT_MM = 192.0
# Of whatever part of a configuration has them: so small that a step takes no time.
SMALL = {
    "latent_channels": 4,
    "codes": 16,
    "squeeze": 4,
    "width": 16,
    "layers": 1,
    "heads": 2,
}
# Of whatever part of a method has them.
QUICK = {
    "steps": 3,
    "seeds": 3,
    "epochs": 2,
    "samples": 500,
    "members": 2,
    "iterations": 3,
    "passes": 3,
    "count": 2,
    "candidates": 500,
    "size": 50,
}


# For the runs of methods: far enough from the zeros that training starts with.
LONGER = ("optim.steps=12", "optim.lr=1e-2", "validation.every=12", "save_every=12")


@dataclass(frozen=True)
class Run:
    """A training run.

    Arguments:
        config: shipped configuration
        words: on top of it
        lent: word -> the run that it names
        data: folder of cases, `population`, or none where the run of another one decides
    """

    config: str
    words: tuple[str, ...] = ()
    lent: Mapping[str, str] = field(default_factory=dict)
    data: str | None = "plain"


@dataclass(frozen=True)
class Method:
    """How a method is called.

    Arguments:
        run: the run that it gets
        words: on top of its configuration
        lent: word -> another run that it names
        options: of the command; a classifier is the name of its run
        inputs: folder of the cases
    """

    run: str = "wavelet"
    words: tuple[str, ...] = ()
    lent: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: str = "new"


CLASSES = "{name: class_conditional, attribute: group, values: [healthy, sick]}"
COLD = "kernel={name: cold, schedule: {name: cosine, zero_terminal_snr: true}}"
DISCRETE = "kernel={name: discrete, schedule: {name: cosine, zero_terminal_snr: true}}"


def restoring(corruption: str) -> Run:
    return Run("wavelet_64", (f"recipe={{name: degradation, corruption: {corruption}}}", COLD))


def detecting(corruption: str) -> Run:
    return Run("wavelet_64", (f"recipe={{name: synthetic_anomalies, corruption: {corruption}}}",))


RUNS = {
    "wavelet": Run("wavelet_64"),
    "patch": Run("patch_64"),
    "pseudo3d": Run("pseudo3d_64"),
    "kl": Run("kl_64"),
    "latent": Run("latent_64", lent={"space.autoencoder": "kl"}),
    "binary": Run("binary_64"),
    "bits": Run("latent_64", (DISCRETE,), {"space.autoencoder": "binary"}),
    "classes": Run("wavelet_64", (f"recipe={CLASSES}",), data="labelled"),
    "simplex": Run("patch_64", ("noise=simplex",)),
    "pyramid": Run("patch_64", ("noise=pyramid",)),
    "told": Run("patch_64", ("noise=simplex", "recipe.reference=true")),
    "boxes": Run("patch_64", ("recipe={name: local_noise, region: {name: box, side_mm: 24}}",)),
    "masked": Run(
        "wavelet_64",
        (
            "recipe={name: local_noise, region: {name: cells, share: 0.5, cell_mm: 16}, "
            "mask_loss: 0.1}",
        ),
    ),
    "voids": Run(
        "wavelet_64",
        ("recipe={name: inpainting, region: {name: cells, share: 0.75, cell_mm: 16}}",),
    ),
    "edges": Run(
        "wavelet_64",
        ("recipe={name: inpainting, region: {name: blobs, share: [0.05, 0.95]}, edges: 3}",),
    ),
    "modality_cycle": Run(
        "wavelet_64",
        ("recipe={name: modality_cycle, region: slabs}", "data.channels=[FLAIR,T2w]"),
        data="two",
    ),
    **{f"restoring-{c}": restoring(c) for c in ("foreign_patch", "disentangled")},
    **{f"restoring-{c}": restoring(c) for c in ("poisson_patch", "coarse")},
    **{f"detecting-{c}": detecting(c) for c in ("foreign_patch", "poisson_patch")},
    **{f"detecting-{c}": detecting(c) for c in ("natural_patch", "texture_patch")},
    "detecting-mixture": detecting("{name: mixture, of: [{name: mood}, {name: bias_field}]}"),
    "dae": Run("dae_64"),
    "vae": Run("vae_64"),
    "context_vae": Run("context_vae_64"),
    "fanogan": Run("fanogan_64"),
    "soft_intro_vae": Run("soft_intro_vae_64"),
    "vq_tokens": Run("vq_tokens_64"),
    "token_prior": Run("token_prior_64", lent={"autoencoder.autoencoder": "vq_tokens"}),
    "classifier": Run("encoder_64", lent={"classifier.of": "wavelet"}, data=None),
    "residual_segmenter": Run("siamese_64", lent={"residual_segmenter.of": "wavelet"}, data=None),
    "marked": Run("wavelet_64", data="labelled"),
    "labels": Run("wavelet_64", ("recipe={name: label_diffusion, labels: [1]}",), data="labelled"),
}
# Methods that are not in here get the run "wavelet" as they are.
CLASSIFIED = {"classifier": "classifier"}
BOXES = ("route.box_mm=32", "route.overlap_mm=8")
METHOD = {
    "andi": Method("pyramid"),
    "anoddpm": Method("simplex"),
    "anofpdm": Method("classes"),
    "bernoulli": Method("bits"),
    "cddpm": Method("told"),
    "cevae": Method("context_vae"),
    "cfg_inversion": Method("classes"),
    "class_contrast": Method("classes"),
    "dae": Method("dae"),
    "dae_diffusion": Method("restoring-coarse"),
    "ddib": Method("classes"),
    "dif_fuse": Method(options=CLASSIFIED),
    "diff_scm": Method("classes"),
    "diffusion_features": Method("marked"),
    "disyre": Method("restoring-foreign_patch"),
    "disyre_v2": Method("restoring-disentangled"),
    "draem": Method("detecting-texture_patch"),
    "fanogan": Method("fanogan"),
    "fpi": Method("detecting-foreign_patch"),
    "grid": Method(words=BOXES),
    "healthy_inpainting": Method("voids"),
    "hu": Method("classes"),
    "inpaint_given": Method(options={"region": "truth/sub-90_label.nii"}),
    "itermask3d": Method("edges"),
    "ltm": Method("token_prior", ("reconstruction.threshold=0.9",)),  # codes are few
    "mad_ad": Method("masked"),
    "mae": Method("voids"),
    "mmccd": Method("modality_cycle", inputs="new-two"),
    "nsa": Method("detecting-natural_patch"),
    "pddpm": Method("boxes", BOXES),
    "phanes": Method(lent={"first.run": "soft_intro_vae"}),
    "pii": Method("detecting-poisson_patch"),
    "pii_diffusion": Method("restoring-poisson_patch"),
    "ra": Method("soft_intro_vae"),
    "sadm": Method(lent={"map.run": "residual_segmenter"}),
    "saliency": Method(options=CLASSIFIED),
    "synthetic": Method("detecting-mixture"),
    "vae": Method("vae"),
    "vae_restoration": Method("vae"),
    "wolleb": Method(options=CLASSIFIED),
    "wolleb_ddpm": Method(options=CLASSIFIED),
}
# Once more with runs of the other kinds.
ALSO = {
    "patch": ("scan", "thor", "features", "repaint"),
    "pseudo3d": ("scan", "thor", "features", "repaint"),
    "latent": ("scan", "thor", "features", "repaint", "vae"),
    "vae": ("intensity", "atlas"),
    "simplex": ("thor",),
    "classes": ("scan",),
}
AUGMENTED = (
    "data.augmentation={flip: [0], affine_degrees: 10, affine_scale: 0.1, elastic_mm: 4, "
    "affine_translation_mm: 4, bias: 0.2, gamma: 0.2, noise: 0.05}"
)
GAUSSIAN = "kernel={{name: gaussian, schedule: {}, prediction: {}}}"
RUNS |= {
    "linear": Run("wavelet_64", (GAUSSIAN.format("linear", "eps"), "optim.accumulate=2")),
    "scaled": Run("patch_64", (GAUSSIAN.format("scaled_linear", "x0"), "noise=coarse")),
    "augmented": Run("wavelet_64", (AUGMENTED, "data.preprocessing.intensity=histogram")),
    "z_score": Run("wavelet_64", ("data.preprocessing.intensity=z_score", "space.levels=2")),
    "atlas": Run(
        "wavelet_64",
        ("recipe={name: healthy, atlas: true, scalars: [age]}", "network.coordinates=true"),
    ),
    "guided": Run("wavelet_64", ("network={name: guided, widths: [32, 32], blocks: 1}",)),
    "monai_unet": Run(
        "wavelet_64",
        (
            "network={name: monai_unet, widths: [8, 8], groups: 4, blocks: 1, "
            "attention_levels: [1]}",
        ),
    ),
    "monai_kl": Run(
        "kl_64", ("autoencoder={name: monai_kl, widths: [8, 8], groups: 4, blocks: 1}",)
    ),
    "slabs": Run("wavelet_64", ("memory.slab=4", "memory.checkpoint=true")),
    "offload": Run("wavelet_64", ("memory.checkpoint=1", "memory.offload=true")),
    "slices": Run("pseudo3d_64", ("network.through_plane=false", "crop=[16,16,1]")),
    "residual_segmenter-labels": Run(
        "siamese_64",
        ("recipe={name: label_diffusion, labels: [1]}",),
        {"residual_segmenter.of": "marked"},
        data=None,
    ),
}
ALSO |= dict.fromkeys(("linear", "augmented", "z_score", "atlas"), ("scan",))
ALSO |= dict.fromkeys(("guided", "monai_unet"), ("scan", "features"))
POSTS = "post=[erode, median, smooth, open, close, {name: min_component, volume_ml: 0.02}]"
# The same methods with other blocks than the shipped ones, or other options.
OTHERS = {
    "ddpm+dpmpp": Method(words=("sampler={name: dpmpp, steps: 3}",)),
    "ddpm+heun": Method(words=("sampler={name: heun, steps: 3}",)),
    "ddpm+plms": Method(words=("sampler={name: plms, steps: 4}",)),
    "ddpm+ddim": Method(words=("sampler={name: ddim, steps: 3, eta: 0.5}",)),
    "ddpm+best": Method(words=("threshold=best", "score=max")),
    "ddpm+otsu": Method(words=("threshold=otsu", "score={name: excess, value: 0.1}")),
    "ddpm+own": Method(words=("threshold=own_quantile", "map=ssim")),
    "ddpm+conformal": Method(words=("threshold={name: conformal, probability: 0.7}",)),
    "ddpm+posts": Method(words=(POSTS,)),
    "ddpm+seed": Method(options={"seed": 1}),
    "ddpm+slabs": Method(options={"memory": "slab=4"}),
    "ddpm+recompute_skips": Method("pseudo3d", options={"memory": "recompute_skips=true"}),
    "ddpm+offload": Method(options={"memory": "offload=true"}),
    "ddpm+simplex": Method("simplex", ("noise=simplex",)),
    "scan+coarse": Method("scaled", ("noise=coarse",)),
    "scan+intensity": Method(words=("normalize={name: by_intensity}",)),
    "scan+adapt": Method(words=("adapt={name: affine, steps: 2}",)),
    "scan+geometric": Method(words=("ensemble={name: geometric_mean, seeds: 2}",)),
    "scan+harmonic": Method(words=("ensemble={name: harmonic_mean, seeds: 2}",)),
    "cfg_inversion+difference": Method("classes", ("guidance=finite_difference",)),
    "cfg_inversion+sum": Method(
        "classes", ("guidance={name: sum, terms: [classifier_free, finite_difference]}",)
    ),
    "fpi+sampled": Method(
        "detecting-foreign_patch",
        ("detector={name: sampled, sampler: {name: ddim, steps: 3}, seeds: 2}",),
    ),
    "sadm+labels": Method(
        "marked", ("supervision=full",), {"map.run": "residual_segmenter-labels"}
    ),
    "dif_fuse+saliency": Method(options={"saliency": "truth/sub-90_label.nii"}),
    "pinaya+latent": Method("latent", ("editing.quantile=0.6",)),
    "ddpm+none": Method("kl"),
    "wolleb+none": Method(),
    "sadm+none": Method(),
    "phanes+none": Method(),
    "fpi+none": Method(),
}


def names_of(folder: str) -> list[str]:
    """Names of the shipped configurations in a folder."""
    return sorted(path.stem for path in CONFIGS.glob(f"{folder}/*.yaml"))


def config_of(name: str) -> tuple[str, dict[str, Any]]:
    """The folder and the tree of a shipped configuration of a run."""
    (path,) = [p for f in FOLDERS for p in CONFIGS.glob(f"{f}/{name}.yaml")]
    return path.parent.name, yaml.safe_load(path.read_text())


def small_side(name: str) -> int:
    return SIDE[config_of(name)[1]["data"]["preprocessing"]["shape"][0]]


def small(name: str) -> list[str]:
    """Words that make a configuration small and short, levels and kinds of layers left."""
    _, tree = config_of(name)
    words = ["optim.steps=3", "optim.warmup=1", "optim.ema=0.5", "save_every=3"]
    words += ["validation.every=3", "validation.volumes=2"]
    if tree["validation"]["previews"]:
        words.append("validation.previews=1")
        words += ["validation.preview_steps=2"] * ("preview_steps" in tree["validation"])
    if tree["validation"].get("best"):
        words.append("validation.best.volumes=2")
    for part in ("network", "autoencoder", "classifier", "residual_segmenter"):
        section = tree.get(part) or {}
        if "widths" in section:
            words.append(f"{part}.widths={[4] + [8] * (len(section['widths']) - 1)}")
        if section and (part == "network" or "groups" in section):
            words.append(f"{part}.groups=2")
        words += [f"{part}.{k}={v}" for k, v in SMALL.items() if k in section]
    if tree["crop"]:
        full = tree["data"]["preprocessing"]["shape"][0]
        words.append(f"crop={[n * small_side(name) // full for n in tree['crop']]}")
    return words


def quick(name: str) -> list[str]:
    """Words that make a method short."""

    def walk(tree: dict[str, Any], place: str) -> Iterator[str]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{place}{key}.")
            elif key in QUICK and isinstance(value, int) and value > QUICK[key]:
                yield f"{place}{key}={QUICK[key]}"

    text = (CONFIGS / METHODS / f"{name}.yaml").read_text()
    return list(walk(yaml.safe_load(text), ""))


def shipped_run(name: str) -> Run:
    """FOLDER/CONFIG as a run on the population, built on other ones where it has to be."""
    config = name.partition("/")[2]
    _, tree = config_of(config)
    space, autoencoder = tree.get("space"), tree.get("autoencoder")
    if isinstance(space, dict) and "autoencoder" in space:
        other = Path(space["autoencoder"]).name
        return Run(config, (), {"space.autoencoder": f"autoencoders/{other}"}, "population")
    if autoencoder and "autoencoder" in autoencoder:
        other = Path(autoencoder["autoencoder"]).name
        return Run(config, (), {"autoencoder.autoencoder": f"autoencoders/{other}"}, "population")
    if "residual_segmenter" in tree:
        return Run(config, (), {"residual_segmenter.of": "pipelines/wavelet_64"}, None)
    if "classifier" in tree:  # simulated subjects have no classes
        return RUNS["classifier"]
    return Run(config, (), {}, "population")
