"""The documentation: generated pages are those of the code, pages hold together, blocks run."""

import re

import pytest
import typer
from tiny_app import QUICK, base, program, run, write_cases

from volumediff import cli, config
from volumediff.documentation import site
from volumediff.documentation.blocks import run_pages
from volumediff.documentation.links import broken_links
from volumediff.documentation.pages import PAGES, find_pages, read_page
from volumediff.documentation.reference.arguments import arguments_of
from volumediff.documentation.reference.commands import parameters_of
from volumediff.documentation.reference.components import DERIVED, ELSEWHERE
from volumediff.documentation.reference.configuration import schemas, sections
from volumediff.documentation.reference.generated import REFERENCE, generated
from volumediff.documentation.site import build_site, cached_site, navigation
from volumediff.documentation.small_words import with_small
from volumediff.documentation.workplaces import WORKPLACES
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.metric_definitions import METRICS

__all__ = ["base", "program", "run"]  # fixtures

PROGRAM = typer.main.get_command(cli.app)
PAGE_OF = {page.name: page for page in find_pages()}


@pytest.mark.parametrize("name", generated(PROGRAM))
def test_generated_pages_are_those_of_the_code(name):
    written = (REFERENCE / name).read_text(encoding="utf-8")
    assert generated(PROGRAM)[name]() == written, "run volumediff docs --reference"


@pytest.mark.parametrize("family", [f for f in config.families() if f not in ELSEWHERE])
def test_every_component_and_argument_has_a_sentence(family):
    for name, line in config.described(family).items():
        assert line, f"{family} {name}"
        found = arguments_of(config.component(family, name))
        missing = [a.name for a in found if not a.text and a.name not in DERIVED.get(family, ())]
        assert not missing, f"{family} {name}: {missing}; write them under Arguments:"


@pytest.mark.parametrize("task", schemas())
def test_every_key_has_a_sentence(task):
    schema = schemas()[task]
    for place, cls in [("", schema), *sections(schema)]:
        missing = [a.name for a in arguments_of(cls) if not a.text]
        assert not missing, f"{task} {place}: {missing}; write them under Arguments:"


@pytest.mark.parametrize("command", [c.name for c in cli.app.registered_commands])
def test_every_command_and_option_has_a_sentence(command):
    function = next(c.callback for c in cli.app.registered_commands if c.name == command)
    assert function.__doc__
    assert not [p.names for p in parameters_of(function) if not p.help.endswith(".")]


def test_every_metric_has_a_definition_and_a_range():
    for definitions in METRICS.values():
        assert not [n for n, d in definitions.items() if not (d.definition and d.range)]


@pytest.mark.parametrize("name", PAGE_OF)
def test_links_anchors_and_images_lead_somewhere(name):
    assert broken_links(PAGE_OF[name]) == []
    assert PAGE_OF[name].workplace in WORKPLACES


def test_every_page_is_in_the_navigation():
    listed = [page for section in navigation() for page in next(iter(section.values()))]
    pages = [p.relative_to(PAGES).as_posix() for p in PAGES.glob("*/*.md")]
    assert sorted(pages) == sorted(p for p in listed if "/" in p)


def written(folder, text, name="page.md"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return read_page(folder / name, folder)


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("other.md", "no such file"),
        ("page.md#no-heading", "no such heading"),
        ("http://example.org", "expected https"),
        ("https://no host", "no name of a host"),
    ],
)
def test_broken_links_are_found_with_their_line(target, fault, tmp_path):
    page = written(tmp_path, f"# A heading\n\n[good](page.md#a-heading) [bad](<{target}>)\n")
    (found,) = broken_links(page)
    assert found.startswith(f"{page.path}:3: ")
    assert found.endswith(fault)


def test_a_missing_image_is_found(tmp_path):
    (found,) = broken_links(written(tmp_path, "# A\n\n![what it shows](images/none.png)\n"))
    assert "images/none.png: no such file" in found


GOOD = """\
# Page

<!-- file: values.txt -->
```text
3
```

```sh
test "$(cat values.txt)" = 3
echo written > from_shell.txt
```

```python
from pathlib import Path
number = int(Path("values.txt").read_text())
```

<!-- exits: 3 -->
```sh
exit 3
```

<!-- not run: there is no such command -->
```sh
no-such-command
```

```python
assert number == 3 and Path("from_shell.txt").read_text() == "written\\n"
```
"""


def outcome(page, work):
    (found,) = run_pages([page], work, taking=())
    return found


def test_blocks_of_a_page_run_in_order_in_one_folder(tmp_path):
    found = outcome(written(tmp_path / "docs", GOOD), tmp_path / "work")
    assert found.failure is None
    assert (found.blocks, found.skipped) == (5, 1)
    assert not (tmp_path / "docs" / "values.txt").exists()


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("= 3\n", "= 4\n", 9, "failed: test"),
        ("exits: 3", "exits: 2", 20, "exit code 3, expected 2"),
        ("number == 3", "number == 4", 29, "AssertionError"),
        ("number == 3", "number = 3", 29, "SyntaxError"),
        ("number == 3", "__import__('os')._exit(5) ==", 29, "assert"),
    ],
)
def test_the_failing_block_is_named_with_its_line_and_output(old, new, line, said, tmp_path):
    page = written(tmp_path / "docs", GOOD.replace(old, new))
    failure = outcome(page, tmp_path / "work").failure
    assert failure.startswith(f"{page.path}:{line}:\n")
    assert said in failure


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("memory: {slab: 32}", None),
        ("memory: {slap: 32}", "slap"),
        ("baseline: {name: intensity, sign: -1}", None),
        ("baseline: {name: intensitty}", "intensitty"),
        ("- 1", "expected the keys of a configuration"),
    ],
)
def test_configurations_in_pages_are_read_as_the_program_reads_them(block, said):
    import yaml

    from volumediff.documentation.configurations import validate

    if said is None:
        validate(yaml.safe_load(block))
    else:
        with pytest.raises((UsageError, ValueError), match=said):
            validate(yaml.safe_load(block))


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("volumediff train a b=1\n", "volumediff train a b=1 W=1\n"),
        ("volumediff train a \\\n  b=1 | tee f\n", "volumediff train a \\\n  b=1 W=1 | tee f\n"),
        ('volumediff train "x; y" > f 2>&1\n', 'volumediff train "x; y" W=1 > f 2>&1\n'),
        ("volumediff info && volumediff train a  # why\n",
         "volumediff info && volumediff train a W=1  # why\n"),
        ("accelerate launch -m volumediff train a", "accelerate launch -m volumediff train a W=1"),
        ("x=$(volumediff train a)\n", "x=$(volumediff train a W=1)\n"),
        ("ls runs/volumediff train\n", "ls runs/volumediff train\n"),
    ],
)  # fmt: skip
def test_small_words_come_at_the_end_of_commands_that_take_them(script, wanted):
    assert with_small(script, "W=1", ["train"]) == wanted


@pytest.mark.parametrize(
    "text",
    ["<!-- smal: a=1 -->\n```sh\nls\n```\n", "```sh\nls\n", "---\nworkplase: empty\n---\n# A\n"],
)
def test_pages_that_say_nothing_known_are_refused(text, tmp_path):
    with pytest.raises(UsageError):
        written(tmp_path, text)


def test_the_site_opens_without_a_network_and_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    home = cached_site()
    assert (home / "search" / "search_index.js").is_file()  # search from file://
    for page in home.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', html), page
    monkeypatch.chdir(tmp_path)
    build_site(home.relative_to(tmp_path))  # as `docs --build -o DIR`, over the earlier site
    assert (home / "index.html").is_file()
    monkeypatch.setattr(site, "build_site", lambda *given: pytest.fail("built twice"))
    assert cached_site() == home


def test_places_where_no_site_can_be_written(tmp_path, monkeypatch):
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(DataError, match="--build -o DIR"):
        cached_site()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="found other files"):
        build_site(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").is_file()
    with pytest.raises(UsageError, match="found a file"):
        build_site(blocked)


def test_wrong_uses_are_one_line(program):
    assert program("docs", "--page", "no-such-page")[0] == 2
    assert program("docs", "--build")[0] == 2
    assert program("docs", "--build", "--check", "-o", "x")[0] == 2
    code, _, err = program("docs", "--check", "--page", "tutorials/indx")
    assert (code, err.count("\n")) == (2, 1)
    assert "Did you mean 'tutorials/index'?" in err


def named_files():
    """A pattern for each file that the page of file formats names."""
    text = (REFERENCE / "file-formats.md").read_text(encoding="utf-8")
    found = []
    for line in text.splitlines():
        names = re.findall(r"`([^`]+)`", line.split("|")[1]) if line.startswith("| `") else ()
        found += [re.sub(r"<[^>]+>", "[^/]+", name.replace(".", r"\.")) for name in names]
    return [re.compile(pattern) for pattern in found]


def test_the_page_of_file_formats_names_every_file(program, run, tmp_path):
    cases, out = write_cases(tmp_path / "cases", 1), tmp_path / "out"
    code, _, err = program("localize", cases, "--run", run, "-o", out, "--device", "cpu", *QUICK)
    assert code == 0, err
    for root in (run, out):
        for path in (p for p in root.rglob("*") if p.is_file()):
            name = path.relative_to(root).as_posix()
            assert any(p.fullmatch(name) for p in named_files()), f"{name} is on no page"
