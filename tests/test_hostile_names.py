"""Names of files that a terminal would act on, and links that lead nowhere or in circles."""

import shutil

import pytest
from tiny_app import PLAIN, base, program, run, write_cases

from volumediff.errors import printable

_ = base, program, run  # fixtures

NAMES = ("\x1b[2Jnew", "\x1b]0;title\x07new", "new\u202emoc", "new\rover", "[bold]new[-bold]")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_cases(tmp_path_factory.mktemp("names") / "data", count=len(NAMES))
    for name, path in zip(NAMES, sorted(folder.iterdir()), strict=True):
        path.rename(folder / f"{name}.nii.gz")
    (folder / "\x1b[31mbad.nii.gz").write_bytes(b"no volume")
    (folder / "circle.nii.gz").symlink_to("circle.nii.gz")
    (folder / "nowhere.nii.gz").symlink_to("gone.nii.gz")
    return folder


def test_what_a_terminal_would_obey_is_shown():
    assert printable("a\x1b[2J\x07\u202e\ud800é×\n\tb") == "a\\x1b[2J\\x07\\u202e\\ud800é×\n\tb"


def harmless(*texts):
    for text in texts:
        assert all(c in "\n\t" or c.isprintable() for c in text), ascii(text)
        assert "Traceback" not in text


def test_no_command_sends_a_name_to_the_terminal(data, run, program, tmp_path, monkeypatch):
    code, out, err = program("check", data)
    harmless(out, err)
    assert code == 1
    assert "circle" in out
    assert "\\x1b[2J" in out
    code, out, err = program("localize", data, "--run", run, "-o", tmp_path / "out", *PLAIN)
    harmless(out, err)
    assert code == 1
    assert out.startswith(f"{tmp_path / 'out'}: {len(NAMES)} done, 3 failed"), out
    for name in NAMES[:2]:
        harmless(*program("check", data / f"{name}.nii.gz")[1:])
        harmless(*program("localize", data / name, "--run", run, "-o", tmp_path / "o", *PLAIN)[1:])
    harmless(*program("train", f"{data}/\x1b[2J.yaml")[1:])
    harmless(*program("train", "wavelet_64", "\x1b[2J=1")[1:])
    harmless(*program("plan", "wavelet_64", "data.\x1b[2J=1")[1:])
    harmless(*program("\x1b[2J")[1:])
    harmless(*program("evaluate", tmp_path / "\x1b[2J", "--truth", data)[1:])


def test_planted_links_of_a_run_are_not_followed(run, tmp_path):
    from tiny_runs import tiny, write_data

    from volumediff.errors import DataError
    from volumediff.training.loop import train

    victim, place = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    place.mkdir()
    (place / "run.lock").symlink_to(victim)
    config = tiny(write_data(tmp_path / "data", cases=4), place, "optim.steps=1")
    with pytest.raises(DataError, match="symbolic links"):
        train(config)
    assert victim.read_text() == "precious"
    (place / "run.lock").unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    (place / "checkpoints").symlink_to(elsewhere)
    with pytest.raises(DataError, match=r"checkpoints: is a symbolic link"):
        train(config)
    assert list(elsewhere.iterdir()) == []
