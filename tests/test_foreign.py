"""A package of somebody else, installed beside volumediff, adds to it without touching it.

`tests/foreign` holds the package: a rectified flow with its density of training times, a map, a
sampler, a segmentation method, a layout and a task, each used here through YAML, the command line
and Python, and described by `info`.
"""

import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from child_processes import run_program
from scipy import stats
from tiny_app import program
from tiny_runs import SIZE, phantom

import volumediff
from volumediff.contracts import check

__all__ = ["program"]  # a fixture

PACKAGE = Path(__file__).parent / "foreign"
PARTS = {
    "kernel": "flow:RectifiedFlow",
    "times": "flow:Middle",
    "map": "maps:Squared",
    "sampler": "samplers:Midpoint",
    "segmenter": "segmentation:OnePass",
    "layout": "layouts:Numbered",
    "task": "tasks:Supervised",
}
COMMON = {
    "data": {
        "preprocessing": {"shape": list(SIZE), "intensity": "percentile"},
        "layout": "foreign_volumes.layouts:Numbered",
        "split": {"validation": 0.25, "calibration": 0.25},
    },
    "optim": {"lr": 1e-2, "steps": 6, "warmup": 1, "batch_size": 2, "ema": 0.5},
    "validation": {"every": 3, "volumes": 2},
    "save_every": 3,
}
FLOW = {
    "space": "voxel",
    "kernel": {"name": "foreign_volumes.flow:RectifiedFlow"},
    "network": {"name": "unet", "widths": [4, 8], "blocks": 1, "groups": 2},
    "times": "foreign_volumes.flow:Middle",
}
METHOD = {
    "route": {"name": "diffuse", "log_snr": 0.0},
    "sampler": {"name": "foreign_volumes.samplers:Midpoint", "steps": 3},
    "map": {"name": "foreign_volumes.maps:Squared", "factor": 2.0},
    "threshold": "otsu",
}


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory):
    """The package in a folder of its own, put there by pip as any other."""
    place = tmp_path_factory.mktemp("site")
    words = ("install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    source = tmp_path_factory.mktemp("source") / "foreign"  # a build leaves files in its source
    shutil.copytree(PACKAGE, source)
    command = [sys.executable, "-m", "pip", *words, "--target", str(place), str(source)]
    run_program(command, environment={"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    sys.path.insert(0, str(place))
    yield place
    sys.path.remove(str(place))
    for name in [n for n in sys.modules if n.partition(".")[0] == "foreign_volumes"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight numbered subjects, all with a tumour."""
    root = tmp_path_factory.mktemp("numbered")
    for i in range(8):
        folder = root / f"{i:03d}"
        folder.mkdir()
        image = phantom(i)
        affine = np.diag([-3.0, -3, 3, 1])
        nib.save(nib.Nifti1Image(image, affine), folder / "scan.nii.gz")
        tumour = (image > 150).astype(np.uint8)
        nib.save(nib.Nifti1Image(tumour, affine), folder / "tumour.nii.gz")
    return root


def written(path: Path, tree: dict) -> Path:
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def flow(data, tmp_path_factory):
    """The flow, trained from Python with what a YAML file says."""
    folder = tmp_path_factory.mktemp("flow")
    config = written(folder / "flow.yaml", COMMON | FLOW)
    volumediff.train(config, data=data, output=folder / "run")
    return folder / "run"


@pytest.mark.parametrize("family", PARTS)
def test_it_keeps_the_contract(family, data, flow):
    more = {}
    if family == "layout":
        more = {"root": data}
    elif family == "segmenter":
        model = torch.nn.Sequential(torch.nn.Conv3d(1, 1, 1))
        torch.nn.init.constant_(model[0].weight, 50.0)
        torch.nn.init.zeros_(model[0].bias)
        more = {"model": model}
    check(family, f"foreign_volumes.{PARTS[family]}", **more)


@pytest.mark.parametrize("family", PARTS)
def test_info_describes_it(family, program):
    name = f"foreign_volumes.{PARTS[family]}"
    code, out, err = program("info", name)
    assert code == 0, err
    module = __import__(name.partition(":")[0], fromlist=["_"])
    first = getattr(module, name.partition(":")[2]).__doc__.split(".")[0]
    assert family in out
    assert " ".join(first.split()) in " ".join(out.split())


def test_the_density_is_the_one_it_says():
    from foreign_volumes.flow import Middle, Straight

    drawn = Middle().draw(range(2000), Straight()).numpy()
    assert stats.kstest(drawn, stats.beta(2, 2).cdf).pvalue > 0.01


def test_the_flow_trains_on_the_command_line_as_in_python(program, data, flow, tmp_path):
    words = [f"{k}={yaml.safe_dump(v, default_flow_style=True).strip()}" for k, v in FLOW.items()]
    words = [w.removesuffix("\n...") for w in words]
    common = written(tmp_path / "common.yaml", COMMON | {"network": FLOW["network"]})
    output = f"output={tmp_path / 'run'}"
    code, _, err = program("train", common, f"data.root={data}", output, *words)
    assert code == 0, err
    one, two = volumediff.load(flow, device="cpu"), volumediff.load(tmp_path / "run", device="cpu")
    assert one.trained.digest == two.trained.digest
    assert type(one.trained.model.kernel).__name__ == "RectifiedFlow"


def test_map_and_sampler_localize_alike_in_yaml_words_and_python(program, data, flow, tmp_path):
    image = data / "003" / "scan.nii.gz"
    method = written(tmp_path / "mine.yaml", METHOD)
    code, _, err = program(
        "localize", image, "--run", flow, "-o", tmp_path / "a", "--method", method
    )
    assert code == 0, err
    words = (
        "route={name: diffuse, log_snr: 0.0}",
        "sampler=foreign_volumes.samplers:Midpoint",
        "sampler.steps=3",
        "map=foreign_volumes.maps:Squared",
        "map.factor=2",
        "threshold=otsu",
    )
    others = ("post=[]", "normalize=raw")
    options = ("--run", flow, "-o", tmp_path / "b", "--method", "ddpm")
    code, _, err = program("localize", image, *options, *words, *others)
    assert code == 0, err
    run = volumediff.load(flow, device="cpu")
    result = run.localize(image, method=method)
    maps = [
        nib.load(next(folder.glob("*_desc-anomaly_map.nii.gz"))).get_fdata(dtype=np.float32)
        for folder in (tmp_path / "a", tmp_path / "b")
    ]
    assert maps[0].max() > 0
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_allclose(np.asarray(result.map), maps[0], rtol=1e-6, atol=1e-7)
    # twice the factor is twice the map
    twice = run.localize(image, method=method, map={"factor": 4.0})
    np.testing.assert_allclose(np.asarray(twice.map), 2 * np.asarray(result.map), rtol=1e-6)


def test_the_task_trains_and_its_method_segments(program, data, tmp_path):
    tree = COMMON | {"task": "foreign_volumes.tasks:Supervised", "width": 6}
    tree["optim"] = COMMON["optim"] | {"steps": 60, "lr": 3e-2}
    config, run = written(tmp_path / "task.yaml", tree), tmp_path / "run"
    code, _, err = program("train", config, f"data.root={data}", f"output={run}")
    assert code == 0, err
    image = data / "005" / "scan.nii.gz"
    method = "foreign_volumes.segmentation:OnePass"
    options = ("--run", run, "-o", tmp_path / "out", "--method", method)
    code, _, err = program("segment", image, *options, "temperature=0.5")
    assert code == 0, err
    labels = nib.load(next((tmp_path / "out").glob("*_dseg.nii.gz"))).get_fdata()
    result = volumediff.load(run, device="cpu").segment(image, method=method, temperature=0.5)
    np.testing.assert_array_equal(np.asarray(result.labels), labels)
    truth = nib.load(data / "005" / "tumour.nii.gz").get_fdata() > 0
    dice = 2 * (truth & (labels > 0)).sum() / (truth.sum() + (labels > 0).sum())
    assert dice > 0.5, "it has learnt something"
    code, _, err = program("localize", image, "--run", run, "-o", tmp_path / "maps")
    assert code == 2
    assert "was trained to segment" in err


def test_flow_and_task_are_short():
    for name in ("flow", "tasks"):
        text = (PACKAGE / "foreign_volumes" / f"{name}.py").read_text()
        assert len(text.splitlines()) <= 60, name
