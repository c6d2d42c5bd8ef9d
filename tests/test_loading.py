"""What loads when: the program answers at once, and heavy packages come with what needs them."""

import ast
import json
import os
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from child_processes import run_program
from tiny_app import base, program, run, write_cases

from volumediff import extras
from volumediff.errors import LIBRARIES, UsageError

__all__ = ["base", "program", "run"]  # fixtures

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "volumediff"
# (words of a command)... -> packages that are loaded after each, in one new interpreter
SCRIPT = """
import json, sys
def loaded():
    roots = {name.partition(".")[0] for name in sys.modules}
    return sorted(r for r in roots if r not in sys.stdlib_module_names)
import volumediff
found = [loaded()]
from volumediff.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["volumediff", *words]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code
    found.append(loaded())
print("LOADED", json.dumps(found))
"""


def loaded(*commands):
    """Packages outside of the standard library: after the import, and after each command."""
    done = run_program([sys.executable, "-c", SCRIPT, json.dumps(commands)])
    return [set(names) for names in json.loads(done.stdout.rpartition("LOADED")[2])]


def test_import_help_and_info_load_little(run, tmp_path):
    words = ["--method", "ddpm", "--no-report", "sampler.steps=1", "threshold=best", "post=[]"]
    source = write_cases(tmp_path / "in", count=1)
    localize = ["localize", str(source), "--run", str(run), "-o", str(tmp_path / "out"), *words]
    bare, shown, listed, family, localized = loaded(
        ["--help"], ["info"], ["info", "map"], localize
    )
    assert bare & LIBRARIES == set()
    assert shown & LIBRARIES == {"typer"}
    assert listed & LIBRARIES == {"typer", "pydantic", "yaml"}
    assert family & LIBRARIES == {"typer", "pydantic", "yaml"}
    late = {"monai", "sklearn", "nilearn", "torchio", "SimpleITK", "matplotlib", "pandas", "PIL"}
    # the first time, volumes of a run are compared with the template, which nilearn carries
    late -= {"nilearn", "pandas", "sklearn"}
    late -= {"PIL"}  # nibabel imports pydicom, where that is installed, and pydicom Pillow
    assert "torch" in localized
    assert not localized & (late | {"torchmetrics", "pywt", "h5py", "xformers"})


@pytest.mark.parametrize(("words", "seconds"), [(["--help"], 0.5), (["info"], 1.0)])
def test_the_answer_comes_at_once(words, seconds):
    used = []
    for _ in range(3):
        before = os.times()
        run_program([sys.executable, "-m", "volumediff", *words])
        after = os.times()
        total = after.children_user + after.children_system
        used.append(total - before.children_user - before.children_system)
    assert min(used) < seconds  # of a processor: a busy machine does not count


def imported():
    """Packages that the source imports, anywhere."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {a.name.partition(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
        found |= set(re.findall(r'optional\("(\w+)', text))
    return found - set(sys.stdlib_module_names) - {"volumediff"}


def normal(name):
    return re.match(r"[\w.-]+", name)[0].lower().replace("_", "-")


def test_what_is_required_is_imported_and_what_is_imported_is_required():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {normal(line) for line in project["dependencies"]}
    groups = project["optional-dependencies"]
    optional = {normal(w) for name, lines in groups.items() if name != "test" for w in lines}
    assert not required & optional
    homes = packages_distributions()
    used = imported()
    assert used <= LIBRARIES | {"rich", "triton", "xformers"}
    sources = {name: {normal(d) for d in homes.get(name, [name])} for name in used}
    spare = {name for name in required if not any(name in s for s in sources.values())}
    # pydicom imports one to decode compressed files; mkdocs finds the other, its theme, by name
    assert spare == {"python-gdcm", "mkdocs-material"}
    comes_with_torch = {"triton"}
    missing = {name for name, s in sources.items() if not s & (required | optional)}
    assert missing <= comes_with_torch


def test_a_missing_package_is_one_line(program, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(
        UsageError, match=r"^ltm needs monai.*pip install 'volumediff\[monai\]'\.$"
    ):
        extras.optional("monai.networks.nets", purpose="ltm")
    with monkeypatch.context() as changed:
        changed.setitem(sys.modules, "volumediff.data.check", None)
        code, _, complaint = program("check", tmp_path)
    assert code == 1
    assert "Traceback" in complaint  # a fault of this package, not of the installation
    monkeypatch.setitem(sys.modules, "nibabel", None)

    def needs(*args, **kwargs):
        import nibabel  # noqa: F401

    monkeypatch.setattr("volumediff.commands._doctor.diagnose", needs)
    code, _, complaint = program("doctor")
    assert code == 1
    assert complaint.count("\n") == 1
    assert "the package nibabel is not installed" in complaint


def test_every_extra_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = project["optional-dependencies"]
    for package, extra in extras.EXTRAS.items():
        assert package in {normal(line) for line in groups[extra]}
