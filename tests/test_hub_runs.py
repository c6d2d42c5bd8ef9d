"""Runs on the hub: the same bits come back, with the card, the licence and who was seen."""

import re
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from fake_hub import TOKEN, hub
from monai_networks import maisi_autoencoder, maisi_unet
from test_model_file import CARD, WORDS
from tiny_app import base, label_run, program, run, write_cases
from tiny_runs import phantom

import volumediff
from volumediff.data.seen import Seen
from volumediff.errors import UsageError
from volumediff.runs.model_file import card_of_file
from volumediff.settings.import_record import ImportRecord, import_records_of, keep_import_record
from volumediff.storage import checkpoint
from volumediff.storage.digests import sha256_of_file
from volumediff.training.imported import import_run

__all__ = ["base", "hub", "program", "run"]  # fixtures

SCAN = ("threshold.min_volumes=3", "post=[]")
CALIBRATED = ("--method", "intensity", *WORDS)
IMPORTED = ImportRecord(
    kind="wdm",
    name="WDM",
    address="https://example.org",
    licence="MIT",
    source="w.pt",
    commit=None,
    sha256="0" * 64,
)


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(CARD))
    return path


def weights(folder):
    return checkpoint.find(folder, "best").tensors("ema")


def same_bits(one, other):
    assert set(one) == set(other)
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_comes_back_as_it_was_exported(hub, run, card, program, tmp_path):
    code, out, said = program("push", run, "hf:o/brain", "--card", card, *CALIBRATED)
    assert code == 0, said
    assert re.search(r"hf:o/brain: pushed as commit [0-9a-f]{40}", out)
    assert hub.private == {"o/brain"}
    assert TOKEN not in out + said
    pushed = hub.repositories["o/brain"][-1]
    assert set(pushed) == {"README.md", "brain.safetensors"}
    assert str(run.parent).encode() not in b"".join(pushed.values())
    code, out, said = program("pull", "hf:o/brain", "-o", tmp_path / "pulled")
    assert code == 0, said
    assert "brain, method intensity, licence CC0-1.0" in out
    pulled = volumediff.load(tmp_path / "pulled")
    file = tmp_path / "brain.safetensors"
    file.write_bytes(pushed["brain.safetensors"])
    exported = volumediff.load(file)
    assert same_bits(weights(pulled.folder), weights(exported.folder))
    image = (phantom(9), np.diag([3.0, 3, 3, 1]))
    first, second = exported.localize(image), pulled.localize(image)
    assert first.facts["method"] == second.facts["method"] == "intensity"
    np.testing.assert_array_equal(first.map, second.map)
    # whoever was seen stays known
    seen = Seen.load(pulled.folder / "seen.json")
    digests = [sha256_of_file(p) for p in (run.parent / "data").glob("*.nii.gz")]
    assert all(seen.find(digests=[d], patients=[], names=[]) is not None for d in digests)


def test_the_card_says_what_people_and_the_hub_need(hub, run, card, program):
    assert program("push", run, "hf:o/brain", "--card", card, *CALIBRATED)[0] == 0
    text = hub.repositories["o/brain"][-1]["README.md"].decode()
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["license"], head["library_name"]) == ("cc0-1.0", "volumediff")
    for words in (
        'run = volumediff.pull("hf:o/brain", "runs/brain")',
        'run.localize("CASE.nii.gz").save("out/")',
        "six phantoms",
        "phantoms alone",
        "AP: none",
        "not for diagnosis",
        "voxels: 8 x 8 x 8",
        "calibration: 4",
        "`intensity threshold.min_volumes=2`",
    ):
        assert words in text


def test_a_segmentation_run_comes_back_with_what_its_method_has_fitted(hub, base, tmp_path):
    """The threshold is fitted on the weights as the file holds them; no case is named."""
    run = label_run(base)
    method = tmp_path / "mine.yaml"
    method.write_text("predictor: sampled\nsampler: {name: ancestral, steps: 2}\nsamples: 2\n")
    words = ("post=[fitted_threshold]",)
    volumediff.push(run, "hf:o/labels", card=CARD, method=method, overrides=words)
    pushed = hub.repositories["o/labels"][-1]
    assert b"sub-0" not in pushed["labels.safetensors"]
    text = pushed["README.md"].decode()
    assert "volumediff segment CASE.nii.gz --run runs/labels" in text
    assert "`method/mine.yaml post=[fitted_threshold]`" in text
    method.unlink()
    pulled = volumediff.pull("hf:o/labels", tmp_path / "pulled")
    fits = list((pulled.folder / "calibration").glob("segmentation-*.json"))
    assert len(fits) == 1
    stored = fits[0].read_bytes()
    image = (phantom(9), np.diag([3.0, 3, 3, 1]))
    found = pulled.segment(image)  # no data is reachable: nothing could be fitted again
    assert [f.read_bytes() for f in (pulled.folder / "calibration").glob("*.json")] == [stored]
    own = pulled.segment(
        image, method="label_diffusion", overrides=["sampler={name: ancestral, steps: 2}"]
    )
    assert found.facts["method"].endswith("mine.yaml")
    assert own.facts["method"] == "label_diffusion"
    for call in (pulled.localize,):
        with pytest.raises(UsageError, match="segment"):
            call(image)


def test_a_model_file_is_pushed_as_it_is(hub, run, tmp_path):
    file = tmp_path / "phantoms.safetensors"
    volumediff.export(run, file, card=CARD, method="intensity", overrides=WORDS)
    volumediff.push(file, "hf:o/other", public=True)
    assert hub.repositories["o/other"][-1]["other.safetensors"] == file.read_bytes()
    assert not hub.private
    with pytest.raises(UsageError, match="is a model file, which has its card"):
        volumediff.push(file, "hf:o/other", card=CARD)


@pytest.mark.parametrize(
    ("licence", "own", "public", "words"),
    [
        ("MIT", "CC0-1.0", False, "and the imported weights have MIT; name MIT in the card"),
        (None, "CC0-1.0", True, "no licence was found for the weights of https://example.org"),
        ("MIT", "MIT; data CC0-1.0", True, None),
        (None, "CC0-1.0", False, None),
    ],
)
def test_weights_of_others_keep_their_licence(hub, run, tmp_path, licence, own, public, words):
    file = tmp_path / "phantoms.safetensors"
    place = shutil.copytree(run, tmp_path / "run")
    keep_import_record(place, IMPORTED.model_copy(update={"licence": licence}))
    card = {**CARD, "licence": own}
    volumediff.export(place, file, card=card, method="intensity", overrides=WORDS)
    assert card_of_file(file).imported[0].licence == licence
    if words is not None:
        with pytest.raises(UsageError, match=words):
            volumediff.push(file, "hf:o/n", public=public)
        assert not hub.repositories
        return
    volumediff.push(file, "hf:o/n", public=public)
    text = hub.repositories["o/n"][-1]["README.md"].decode()
    assert "weights of WDM (https://example.org), from w.pt; licence: " in text
    assert (licence or "none found: ask the authors") in text


def test_what_is_no_model_of_this_package_is_refused(hub, run, card, program, tmp_path):
    head = b"---\nlibrary_name: volumediff\n---\n"
    hub.commit("o/pickle", {"README.md": head, "model.pt": b"pickle"})
    hub.commit("o/foreign", {"README.md": b"---\nlicense: mit\n---\n", "m.safetensors": b"x"})
    hub.commit("o/two", {"README.md": head, "a.safetensors": b"x", "b.safetensors": b"x"})
    hub.commit("o/text", {"README.md": head, "a.safetensors": b"no tensors"})
    assert program("push", run, "hf:o/brain", "--card", card, *CALIBRATED)[0] == 0
    content = bytearray(hub.repositories["o/brain"][-1]["brain.safetensors"])
    content[-100] ^= 1
    hub.commit("o/damaged", {"README.md": head, "brain.safetensors": bytes(content)})
    for name, words in {
        "pickle": "expected one model file .safetensors .* got 0 and",
        "foreign": "library_name None; import weights of another tool with volumediff import",
        "two": "expected one model file .safetensors .* got 2 and",
        "text": "damaged: its header is cut",
        "damaged": "damaged: does not match its SHA-256",
    }.items():
        code, _, said = program("pull", f"hf:o/{name}", "-o", tmp_path / "x")
        assert code == 1
        assert said.count("volumediff: error: ") == 1
        assert re.search(words, said)
        assert not list(tmp_path.glob("*x*"))
    code, _, said = program("pull", "hf:o/brain", "-o", run)
    assert code == 2
    assert "is there already; choose another folder" in said
    code, _, said = program("push", run, "hf:o/brain/file", "--card", card)
    assert code == 2
    assert "expected a repository to upload to" in said
    code, _, said = program("push", run, "hf:o/brain")
    assert code == 2
    assert "a run that is pushed needs a card" in said


def test_a_run_of_latents_takes_its_autoencoder_along(hub, tmp_path):
    for name, module in (("a", maisi_autoencoder(latent_channels=4)), ("b", maisi_unet())):
        state = {n: t.float() for n, t in module.state_dict().items()}
        safetensors.torch.save_file(state, tmp_path / f"{name}.safetensors")
    words = ["autoencoder.groups=4"]
    source = tmp_path / "a.safetensors"
    coder = import_run("monai_autoencoder", source, tmp_path / "coder", overrides=words)
    words = ["importer.head_size=4", "network.groups=4", f"space.autoencoder={coder}"]
    words += ["data.preprocessing.shape=[8,8,8]", "data.preprocessing.spacing_mm=3.0"]
    run = import_run("monai_unet", tmp_path / "b.safetensors", tmp_path / "run", overrides=words)
    file = tmp_path / "latents.safetensors"
    assert [r.kind for r in import_records_of(run)] == ["monai_unet", "monai_autoencoder"]
    loaded = volumediff.load(run)
    loaded.calibrate("scan", healthy=write_cases(tmp_path / "healthy"), overrides=SCAN)
    volumediff.export(run, file, card=CARD, method="scan", overrides=SCAN)
    assert str(tmp_path).encode() not in file.read_bytes()
    (coder).rename(tmp_path / "gone")
    volumediff.push(file, "hf:o/latents")
    pulled = volumediff.pull("hf:o/latents", tmp_path / "pulled")
    assert same_bits(weights(pulled.folder), weights(volumediff.load(file).folder))
    own = volumediff.load(run).trained.model.space.autoencoder.state_dict()
    assert same_bits(own, pulled.trained.model.space.autoencoder.state_dict())
    assert b"new-0" not in file.read_bytes()
    # calibrated before it was packed: nothing is fitted again, and nothing has to be there
    image = (phantom(9), np.diag([3.0, 3, 3, 1]))
    assert pulled.localize(image).threshold is not None
    assert [r.kind for r in import_records_of(pulled.folder)] == [
        "monai_unet",
        "monai_autoencoder",
    ]
    x = torch.rand(1, 1, 4, 8, 4)
    z = volumediff.load(run).trained.model.encode(x)
    torch.testing.assert_close(pulled.trained.model.encode(x), z, rtol=0, atol=0)
