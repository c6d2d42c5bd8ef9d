"""Imports go one way, the engine stays light, and the wheel holds every package."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from child_processes import run_program

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "volumediff"

# Lower layers first; a module may import from its own layer and from those before it.
LAYERS = [
    [
        "errors",
        "system",
        "extras",
        "component",
        "tunable",
        "randomness",
        "noise",
        "shapes",
        "tiling",
        "config",
        "condition",
        "chain_noise",
        "terminal",
    ],
    ["storage"],
    ["hub"],
    [
        *("memory", "data", "spaces", "schedules", "weightings", "times", "kernels"),
        "time_grids",
        "networks",
        "conditioners",
        *("autoencoders", "image_codecs", "adapters"),
        "pretexts",
        *("classifiers", "residual_segmenters", "metrics", "importers", "colours"),
    ],
    ["codings", "raters"],
    ["recipes"],
    ["losses"],
    ["supervised_segmentation", "batch", "model"],
    ["compatibility"],
    ["classification", "denoising_gan", "pretraining", "residual_segmentation", "trajectories"],
    ["guidance", "samplers", "features"],
    ["anomaly", "segmentation", "translation"],
    ["settings"],
    ["distributed"],
    ["samples"],
    ["tasks"],
    ["optimization"],
    ["planning"],
    ["training", "proposals"],
    ["runs"],
    ["calibration"],
    ["outputs"],
    ["findings", "evaluation"],
    ["reporting", "dicom_output"],
    ["inference", "tuning", "alignment", "contracts"],
    ["api"],
    ["documentation"],
    ["commands"],
    ["cli", "bids_app", "__main__", "__init__"],
]
ENGINE = (
    "torch",
    "numpy",
    "accelerate",
    "pydantic",
    "yaml",
    "safetensors",
    "jaxtyping",
    "nibabel",
)
LATE = {
    "torchio",
    "monai",
    "nilearn",
    "SimpleITK",
    "scipy",
    "sklearn",
    "pandas",
    "matplotlib",
    "torchmetrics",
    "xformers",
    "pywt",
    "highdicom",
    "huggingface_hub",
    "triton",
    *("mkdocs", "markdown", "pymdownx", "platformdirs"),
}
# Modules that exist for a heavy package, and are themselves imported only when used.
LATE_MODULES = {
    *("networks._norm_act_triton", "networks._norm_act_kernels"),
    *("networks._affine_triton", "networks._affine_kernels"),
}


def layer(module: str) -> int:
    """Index of the layer; the longest matching name counts."""
    found = [
        (len(name), i)
        for i, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    return max(found)[1] if found else 0


def modules() -> list[tuple[str, Path]]:
    examples = PACKAGE / "docs"  # scripts of users, which import anything and are no modules
    files = sorted(p for p in PACKAGE.rglob("*.py") if not p.is_relative_to(examples))
    names = [".".join(f.relative_to(PACKAGE).with_suffix("").parts) for f in files]
    return [(n.removesuffix(".__init__"), f) for n, f in zip(names, files, strict=True)]


def imports(file: Path, *, top_only: bool) -> list[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else ast.walk(tree)
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{file}: relative import; write the full name")
    return found


@pytest.mark.parametrize(("name", "file"), modules(), ids=[n for n, _ in modules()])
def test_imports_go_one_way(name, file):
    for target in imports(file, top_only=False):
        if target.startswith("volumediff."):
            inner = target.removeprefix("volumediff.")
            assert layer(inner) <= layer(name), f"{name} imports {inner} from a later layer"


def test_no_files_import_each_other_in_a_circle():
    """Imports within functions and for annotations count as well."""
    files = dict(modules())
    graph = {name: set() for name in files}
    for name, file in files.items():
        for target in imports(file, top_only=False):
            inner = target.removeprefix("volumediff.")
            while inner and inner not in files:
                inner = inner.rpartition(".")[0]
            if target.startswith("volumediff.") and inner and inner != name:
                graph[name].add(inner)
    TopologicalSorter(graph).prepare()  # CycleError names the files of a circle


@pytest.mark.parametrize(("name", "file"), modules(), ids=[n for n, _ in modules()])
def test_heavy_packages_load_only_when_used(name, file):
    if name.removeprefix("volumediff.") in LATE_MODULES:
        return
    top = imports(file, top_only=True)
    packages = {t.split(".")[0] for t in top}
    assert not packages & LATE, f"{name} imports {packages & LATE} at the top"
    late = [t for t in top if any(m in f"{t}." for m in LATE_MODULES)]
    assert not late, f"{name} imports {late} at the top"


def test_every_layer_name_exists():
    names = {n for n, _ in modules()}
    assert not [n for group in LAYERS for n in group if n not in names]


def test_importing_the_package_is_light():
    code = "import sys, volumediff; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    assert run_program([sys.executable, "-c", code]).stdout.strip() == "[]"


FORBIDDEN = {"pickle", "marshal", "shelve", "dill"}


@pytest.mark.parametrize(("name", "file"), modules(), ids=[n for n, _ in modules()])
def test_nothing_unpickles_or_evaluates(name, file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            roots = {a.name.split(".")[0] for a in node.names} | {getattr(node, "module", None)}
            assert not roots & FORBIDDEN, f"{name}: {roots & FORBIDDEN}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "yaml.load", "extractall"}, name
            if called == "torch.load":
                # Other tools publish nothing else; the user asks for it, and it builds no objects.
                assert name == "importers._files", name
                assert "weights_only=True" in ast.unparse(node), name
            assert not any(k.arg in {"allow_pickle", "shell"} for k in node.keywords), name


def test_a_class_name_means_one_thing():
    places = {}
    for name, file in modules():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    assert not {name: where for name, where in places.items() if len(where) > 1}
