"""What is published: wheel, source distribution, containers, recipe, citation, workflows."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import volumediff

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = [
    c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)
]
# What stands at the top beside dot files and dot folders.
TOP = {
    "volumediff",
    "configs",
    "tests",
    "benchmarks",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CITATION.cff",
    "CHANGELOG.md",
}
# Made by tests, builds and runs; never part of what is published.
MADE = {"build", "dist", "runs", "volumediff.egg-info", ".git", ".pytest_cache", ".ruff_cache"}
MADE |= {".hypothesis", ".venv"}
LARGEST_FILE = 15_000_000  # bytes: the model that ships
CONDA_NAMES = {
    "torch": "pytorch",
    "isal": "python-isal",
    "matplotlib": "matplotlib-base",
    "python-gdcm": "gdcm",
}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def top():
    """Files and folders at the top of the repository."""
    return {name for name in os.listdir(ROOT) if name not in MADE}


def tree(*names):
    """Files and what is in folders, as paths from the top."""
    found = {name for name in names if (ROOT / name).is_file()}
    for folder in set(names) - found:
        for place, inner, files in os.walk(ROOT / folder):
            inner[:] = [n for n in inner if n != "__pycache__" and not n.endswith(".egg-info")]
            found |= {(Path(place) / name).relative_to(ROOT).as_posix() for name in files}
    return found


def packed(builder):
    """Where the files that a build takes from the tree go: path there -> path here."""
    found = {}
    for file in builder.recurse_included_files():
        found[file.distribution_path] = Path(file.path).relative_to(ROOT).as_posix()
    for file in builder.recurse_forced_files(builder.config.get_force_include()):
        found[file.distribution_path] = Path(file.path).relative_to(ROOT).as_posix()
    return {there.replace(os.sep, "/"): here for there, here in found.items()}


def test_the_wheel_is_the_package_and_the_configurations():
    from hatchling.builders.wheel import WheelBuilder

    found = packed(WheelBuilder(str(ROOT)))  # the builder's own list; nothing is built
    assert set(found.values()) == tree("volumediff", "configs")
    for there, here in found.items():
        assert there == (f"volumediff/{here}" if here.startswith("configs/") else here)


def test_the_source_distribution_is_the_tree():
    from hatchling.builders.sdist import SdistBuilder

    assert set(packed(SdistBuilder(str(ROOT))).values()) == tree(*top())


def test_the_top_level_holds_what_it_may():
    assert {n for n in top() if not n.startswith(".")} == TOP


def test_no_file_is_large():
    assert not [n for n in tree(*top()) if (ROOT / n).stat().st_size > LARGEST_FILE]


def test_there_is_one_version():
    assert PROJECT["dynamic"] == ["version"]
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == volumediff.__version__
    own, *bundled = PROJECT["license"].split(" AND ")
    assert citation["license"] == own
    assert len(PROJECT["license-files"]) == 1 + len(bundled)
    assert citation["authors"] == PROJECT["authors"]
    recipe = yaml.safe_load(read(".packaging/recipe.yaml"))
    assert recipe["context"]["version"] == volumediff.__version__
    heads = re.findall(r"^## \[(.*?)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert heads[0] in {"Unreleased", volumediff.__version__}


def test_workflow_and_containers_use_the_classified_versions_of_python():
    assert PYTHONS == sorted(PYTHONS, key=lambda v: int(v.partition(".")[2]))
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    jobs = yaml.safe_load(read(".github/workflows/tests.yml"))["jobs"]
    matrix = jobs["suite"]["strategy"]["matrix"]
    assert matrix["python"] == PYTHONS
    systems = {"ubuntu": "Linux", "macos": "MacOS", "windows": "Windows"}
    tested = {systems[name.partition("-")[0]] for name in matrix["os"]}
    classified = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Operating" in c}
    assert tested == classified
    for file in (".packaging/Dockerfile", ".packaging/volumediff.def"):
        images = set(re.findall(r"^(?:FROM|From:) (python:\S+)", read(file), re.MULTILINE))
        assert len(images) == 1, file
        (version,) = re.findall(r"python:(3\.\d+)\.\d+-", images.pop())
        assert version in PYTHONS


def test_workflow_runs_the_tests_as_the_readme_says():
    command = re.search(r"<!-- test-command -->\n```\w*\n(.*?)\n```", read("README.md"), re.S)[1]
    steps = yaml.safe_load(read(".github/workflows/tests.yml"))["jobs"]["suite"]["steps"]
    assert " && ".join(s["run"] for s in steps if "run" in s) == command


def conda(requirement):
    name, bounds = re.match(r"([\w.-]+?)([<>=].*)?$", requirement).groups()
    return f"{CONDA_NAMES.get(name, name.lower())} {bounds or ''}".strip()


def test_the_recipe_requires_what_the_package_requires():
    recipe = yaml.safe_load(read(".packaging/recipe.yaml"))
    python, *others = recipe["requirements"]["run"]
    assert python == f"python {PROJECT['requires-python']}"
    assert recipe["about"]["license"] == PROJECT["license"]
    assert recipe["about"]["license_file"] == PROJECT["license-files"]
    assert others == [conda(line) for line in PROJECT["dependencies"]]
    entry = recipe["build"]["python"]["entry_points"]
    assert entry == [f"{name} = {place}" for name, place in PROJECT["scripts"].items()]


@pytest.mark.parametrize("extra", sorted(set(PROJECT["optional-dependencies"]) - {"test"}))
def test_every_extra_is_documented(extra):
    pages = [ROOT / "README.md", *(ROOT / "volumediff" / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert re.search(rf"`{extra}`|\[[\w,]*\b{extra}\b[\w,]*\]", text)


def test_images_copy_what_the_build_reads():
    """The context of a build is a list of what is let in; the wheel needs each of them."""
    allowed = {x[1:] for x in read(".dockerignore").splitlines() if x.startswith("!")}
    needed = {"pyproject.toml", PROJECT["readme"], PROJECT["license-files"][0]}
    assert allowed == needed | {"volumediff", "configs"}
    copied = re.findall(r"^    (\S+) /source/\1$", read(".packaging/volumediff.def"), re.MULTILINE)
    assert set(copied) == allowed
