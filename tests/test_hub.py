"""The hub: repositories become folders, whole and of one commit, or one line says why not."""

import pytest
from fake_hub import TOKEN, commit_of, hub

from volumediff.errors import DataError, UsageError
from volumediff.hub.place import HubPlace
from volumediff.hub.repository import look_up
from volumediff.hub.snapshot import fetch
from volumediff.hub.upload import upload

__all__ = ["hub"]  # a fixture

FILES = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
    "models/unet.safetensors": b"weights" * 100_000,
    "models/extra.pt": b"pickle",
    "configs/inference.json": b"{}",
    "picture.png": b"no",
}
WANTED = ("*.safetensors",)


def fetched(text, report=lambda line: None):
    return fetch(look_up(HubPlace.parse(text)), WANTED, report=report)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:owner/name", ("owner/name", None, None)),
        ("hf:o-1/n.2@v1.0", ("o-1/n.2", "v1.0", None)),
        ("hf:o/n/models/a.safetensors", ("o/n", None, "models/a.safetensors")),
        ("hf:o/n@main/a.pt", ("o/n", "main", "a.pt")),
    ],
)
def test_places_are_read_and_written(text, parts):
    place = HubPlace.parse(text)
    assert (place.repository, place.revision, place.file) == parts
    assert str(place) == text


@pytest.mark.parametrize(
    "text", ["hf:", "hf:name", "hf:o/n@", "hf:o/n@a@b", "hf:o/n/", "hf:o/n/../x", "hf:../n", "o/n"]
)
def test_other_forms_are_refused(text):
    with pytest.raises(UsageError, match="expected hf:OWNER/NAME"):
        HubPlace.parse(text)


def test_a_repository_is_fetched_at_its_commit(hub):
    first = hub.commit("o/n", {**FILES, "models/unet.safetensors": b"older"})
    newest = hub.commit("o/n", FILES)
    said = []
    found = fetched("hf:o/n", said.append)
    assert (found.repository.commit, found.repository.licence) == (newest, "apache-2.0")
    names = {"README.md", "models/unet.safetensors", "configs/inference.json"}
    assert set(found.files) == names  # no pickle, no picture
    assert {n: (found.folder / n).read_bytes() for n in names} == {n: FILES[n] for n in names}
    assert said == [f"hf:o/n: 3 files, 0.7 MB, commit {newest[:12]}, licence apache-2.0"]
    asked = len(hub.asked)
    before = fetched(f"hf:o/n@{first}")
    assert (before.folder / "models/unet.safetensors").read_bytes() == b"older"
    assert before.repository.commit == first
    # what is there is not downloaded again
    asked = len(hub.asked)
    assert fetched("hf:o/n").folder == found.folder
    assert not [path for verb, path, _ in hub.asked[asked:] if verb == "GET" and "resolve" in path]


def test_one_file_brings_what_describes_it(hub):
    hub.commit("o/n", {**FILES, "models/other.safetensors": b"no"})
    found = fetched("hf:o/n/models/extra.pt")
    assert found.path.read_bytes() == b"pickle"
    assert set(found.files) == {"README.md", "models/extra.pt", "configs/inference.json"}


def test_a_download_that_broke_off_goes_on(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.commit("o/n", FILES)
    hub.cut["models/unet.safetensors"] = 100_000
    found = fetched("hf:o/n")
    path = found.folder / "models/unet.safetensors"
    assert path.read_bytes() == FILES["models/unet.safetensors"]
    ranges = [r for verb, p, r in hub.asked if verb == "GET" and p.endswith("unet.safetensors")]
    assert len(ranges) == 2
    assert ranges[1] == "bytes=100000-"


def test_a_file_that_is_not_what_the_hub_says_is_refused(hub):
    hub.commit("o/n", FILES)
    content = FILES["models/unet.safetensors"]
    hub.altered["models/unet.safetensors"] = content[:-1] + b"?"
    with pytest.raises(DataError, match="does not match the SHA-256 that the hub names; remove"):
        fetched("hf:o/n")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("hf:o/none", UsageError, "no such repository, or a private one; .* hf auth login"),
        ("hf:o/n@never", UsageError, "has no revision never; leave @never out"),
        ("hf:o/n/unet.pt", UsageError, "has no file unet.pt; it has README.md, configs/inf"),
        ("hf:o/empty", DataError, r"has no file \*.safetensors; it has README.md"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(hub, text, error, words):
    hub.commit("o/n", FILES)
    hub.commit("o/empty", {"README.md": b""})
    with pytest.raises(error, match=words) as caught:
        fetched(text)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_without_a_network_the_folder_is_the_remedy(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"cannot be reached .* run hf download o/n and give the"):
        fetched("hf:o/n")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="cannot be reached"):
        fetched("hf:o/n")


def test_a_full_disk_is_said_before_anything_is_fetched(hub, monkeypatch):
    from volumediff.hub import snapshot

    hub.commit("o/n", FILES)
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(snapshot.shutil, "disk_usage", lambda place: full)
    with pytest.raises(DataError, match=r"0 MB are free, 1 are needed; .* HF_HOME"):
        fetched("hf:o/n")
    assert not [path for _, path, _ in hub.asked if "resolve" in path]


@pytest.mark.parametrize("public", [False, True])
def test_a_folder_is_uploaded_and_private_unless_said(hub, tmp_path, public):
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "README.md").write_text("# A model")
    commit = upload(tmp_path / "up", HubPlace("o/new"), public=public, message="A model")
    assert hub.repositories["o/new"][-1] == {"README.md": b"# A model"}
    assert commit == commit_of(hub.repositories["o/new"][-1])
    assert ("o/new" in hub.private) is not public
    # another commit leaves visibility and other files as they are
    (tmp_path / "up" / "README.md").rename(tmp_path / "up" / "more.txt")
    upload(tmp_path / "up", HubPlace("o/new"), public=not public, message="More")
    assert set(hub.repositories["o/new"][-1]) == {"README.md", "more.txt"}
    assert ("o/new" in hub.private) is not public


def test_without_a_login_nothing_is_uploaded(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"no such repository|may not do that") as caught:
        upload(tmp_path, HubPlace("o/new"), public=False, message="A model")
    assert "hf auth login" in str(caught.value)
    assert not hub.repositories
