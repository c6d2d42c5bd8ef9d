"""From the weights of another tool to a map, by commands alone: no volume of their training is
known, and what the tool prescribes is done to new ones."""

import json

import nibabel as nib
import numpy as np
import pytest
import safetensors.torch
import torch
from fake_hub import hub
from guided_reference import published
from monai_networks import maisi_autoencoder, maisi_unet
from scipy.stats import beta, binom
from test_importers import PATCH, WDM
from tiny_app import program, save, write_cases
from tiny_runs import phantom

import volumediff
from volumediff.calibration.promise import share_interval
from volumediff.data.alignment_template import mni152
from volumediff.data.grid import Grid
from volumediff.data.volume import Volume
from volumediff.errors import UsageError
from volumediff.runs.stripping import stripped, strips
from volumediff.samples.preparation_record import recorded_preparation
from volumediff.settings.import_record import import_records_of
from volumediff.training.imported import import_run

__all__ = ["hub", "program"]  # fixtures

GRID = ("data.preprocessing.shape=[8,8,8]", "data.preprocessing.spacing_mm=3.0")
SCAN = ("--method", "scan", "threshold.min_volumes=3", "post=[]")


def stored(folder, name, state):
    path = folder / f"{name}.safetensors"
    safetensors.torch.save_file({n: t.float().contiguous() for n, t in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Small random weights of three tools."""
    folder = tmp_path_factory.mktemp("checkpoints")
    latents = {f"unet_state_dict.{n}": t for n, t in maisi_unet().state_dict().items()}
    return {
        "wdm": stored(folder, "wdm", published(**WDM)),
        "patchddm": stored(folder, "patchddm", published(**PATCH)),
        "coder": stored(folder, "coder", maisi_autoencoder(latent_channels=4).state_dict()),
        "monai_unet": stored(folder, "unet", {**latents, "scale_factor": torch.tensor(1.5)}),
    }


def imported(program, kind, checkpoints, folder):
    """The run of a kind, made by the command; the latent one with its autoencoder."""
    words = [f"network.groups={5 if kind == 'patchddm' else 4}"]
    if kind == "monai_unet":
        code, _, said = program(
            *("import", "monai_autoencoder", checkpoints["coder"], "-o", folder / "coder"),
            *("autoencoder.groups=4", *GRID),
        )
        assert code == 0, said
        words += ["importer.head_size=4", f"space.autoencoder={folder / 'coder'}"]
    code, _, said = program("import", kind, checkpoints[kind], "-o", folder / "run", *words, *GRID)
    assert code == 0, said
    return folder / "run", said


@pytest.mark.parametrize("kind", ["wdm", "monai_unet"])
def test_from_weights_to_an_evaluated_map(kind, checkpoints, program, tmp_path):
    run, said = imported(program, kind, checkpoints, tmp_path)
    assert "licence: " in said
    healthy = write_cases(tmp_path / "healthy", 4)
    code, out, said = program("calibrate", "--run", run, *SCAN, "--healthy", healthy)
    assert code == 0, said
    assert "on 4 healthy volumes (all added)" in said
    assert "above all 4 healthy ones has a probability of 0.2 in a healthy volume" in said
    assert "calibrated on 4 volumes, validation threshold none" in out
    case = phantom(300)
    case[3:5, 3:5, 3:5] += 80
    mask = np.zeros_like(case, np.uint8)
    mask[3:5, 3:5, 3:5] = 1
    affine = np.diag([3.0, 3, 3, 1])
    save(tmp_path / "sick" / "a_T1w.nii.gz", case, affine)
    save(tmp_path / "truth" / "a_T1w.nii.gz", case, affine)
    save(tmp_path / "truth" / "a_mask.nii.gz", mask, affine)
    result = tmp_path / "out"
    code, _, said = program("localize", tmp_path / "sick", "--run", run, "-o", result, *SCAN)
    assert code == 0, said
    found = nib.load(result / "a_desc-anomaly_map.nii.gz").get_fdata()
    assert np.isfinite(found).all()
    assert found.std() > 0
    facts = json.loads((result / "a_desc-anomaly_map.json").read_text())
    assert facts["threshold"] is not None
    if kind == "monai_unet":  # the autoencoder with random weights keeps nothing
        assert facts["autoencoder"]["smallest_ml"] is None
        assert np.isfinite(facts["autoencoder"]["psnr_db"])
        findings = json.loads((result / "a_desc-anomaly_findings.json").read_text())
        assert "The autoencoder keeps no lesion" in findings["statement"]
    else:
        assert facts["autoencoder"] is None
    assert facts["imported"][0]["kind"] == kind
    code, out, said = program("evaluate", result, "--truth", tmp_path / "truth")
    assert code == 0, said
    assert "weights were imported" in " ".join(out.split())  # nobody knows their subjects


def test_imported_weights_segment(checkpoints, program, tmp_path):
    run, _ = imported(program, "patchddm", checkpoints, tmp_path)
    names = volumediff.load(run).trained.config.data.channels
    for i, name in enumerate(names):
        save(tmp_path / "in" / f"a_{name}.nii.gz", phantom(i), np.diag([3.0, 3, 3, 1]))
    words = ("sampler.steps=2", "samples=1")
    code, _, said = program(
        "segment", tmp_path / "in", "--run", run, "-o", tmp_path / "out", *words
    )
    assert code == 0, said
    facts = json.loads((tmp_path / "out" / "a_dseg.json").read_text())
    assert facts["stripped"] is False


def test_what_needs_training_volumes_is_refused_with_the_remedy(checkpoints, program, tmp_path):
    run, _ = imported(program, "wdm", checkpoints, tmp_path)
    cases = write_cases(tmp_path / "in", 1)
    for words in (SCAN, ("--method", "padim")):
        code, _, said = program("localize", cases, "--run", run, "-o", tmp_path / "out", *words)
        assert code == 2
        assert said.count("volumediff: error: ") == 1
    assert "its train volumes are needed, and not known" in said
    code, _, said = program("calibrate", "--run", run, *SCAN)
    assert code == 2
    assert "expected at least 3 healthy calibration volumes, got 0" in said
    code, _, said = program("tune", "--run", run, "--method", "scan")
    assert code == 2
    assert "its validation volumes are needed, and not known" in said


def test_the_interval_of_a_share_covers_it():
    """By the definition of Clopper and Pearson: tails of 2.5 % at both ends."""
    for count, of in ((0, 6), (1, 6), (5, 12), (6, 6)):
        low, high = share_interval(count, of)
        if count:
            assert binom.sf(count - 1, of, low) == pytest.approx(0.025)
        if count < of:
            assert binom.cdf(count, of, high) == pytest.approx(0.025)
    assert share_interval(0, 6)[0] == 0.0
    assert share_interval(6, 6)[1] == 1.0
    assert share_interval(0, 6)[1] == pytest.approx(1 - 0.025 ** (1 / 6))
    assert beta.cdf(share_interval(1, 6)[0], 1, 6) == pytest.approx(0.025)


# --- the hub -------------------------------------------------------------------------------------


def test_weights_of_the_hub_are_imported_with_commit_and_licence(
    hub, checkpoints, program, tmp_path
):
    files = {
        "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n",
        "weights/unet.safetensors": checkpoints["wdm"].read_bytes(),
        "weights/unet.pt": b"pickle",
    }
    commit = hub.commit("lab/wdm", files)
    hub.commit("lab/wdm", {**files, "weights/unet.safetensors": b"of a later version"})
    code, _, said = program(
        "import", "wdm", f"hf:lab/wdm@{commit}", "-o", tmp_path / "run", "network.groups=4"
    )
    assert code == 0, said
    assert f"commit {commit[:12]}, licence cc-by-nc-4.0" in said
    (found,) = import_records_of(tmp_path / "run")
    assert (found.licence, found.commit) == ("cc-by-nc-4.0", commit)
    assert found.source == f"hf:lab/wdm@{commit}"
    assert found.line in said
    # the same bits as from the file
    own = import_run("wdm", checkpoints["wdm"], tmp_path / "own", overrides=["network.groups=4"])
    one, other = (volumediff.load(r).trained.digest for r in (tmp_path / "run", own))
    assert one == other


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.pt": b"pickle"}, "hf:o/n/a.pt: is a pickle, which may hold code"),
        ({"a.safetensors": b"", "b.safetensors": b""}, "has 2 checkpoints .* as in hf:o/n/a.saf"),
        ({"a.txt": b""}, "has no checkpoint; it has a.txt"),
    ],
)
def test_repositories_without_one_checkpoint_are_refused_before_a_download(
    hub, files, words, tmp_path
):
    hub.commit("o/n", files)
    with pytest.raises(UsageError, match=words):
        import_run("wdm", "hf:o/n", tmp_path / "run")
    assert not [path for _, path, _ in hub.asked if "/resolve/" in path]
    assert not (tmp_path / "run").exists()


# --- raw volumes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head():
    """The template's brain in a head of fat and noise, somewhere in a scanner."""
    template = mni152().at(4.0)
    x = template.x / template.x.max() * 100
    shape = np.array(x.shape)
    at = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    radius = np.sqrt((((at - shape / 2) / (shape / 2 * 0.95)) ** 2).sum(-1))
    noise = np.random.default_rng(0).uniform(1, 5, x.shape)
    around = np.where((radius < 1) & (radius > 0.9), 60.0, noise)
    whole = np.where(template.object, x, around).astype(np.float32)
    affine = template.grid.affine + 30 * np.eye(4, k=3)
    return Volume(whole[None], affine, "image", Grid(template.grid.shape, affine)), template.object


def test_a_head_is_stripped_where_the_training_volumes_were(head, checkpoints, tmp_path):
    volume, brain = head
    run = import_run("wdm", checkpoints["wdm"], tmp_path / "run", overrides=["network.groups=4"])
    assert strips(recorded_preparation(run))
    images = stripped({"T1w": volume, "FLAIR": volume})
    shown = images["T1w"].array[0] != 0
    assert 2 * (shown & brain).sum() / (shown.sum() + brain.sum()) > 0.9
    np.testing.assert_array_equal(images["T1w"].array[0][shown], volume.array[0][shown])
    np.testing.assert_array_equal(images["FLAIR"].array, images["T1w"].array)
    assert images["T1w"].native is volume.native
    # what shows the brain alone is left as it is
    assert stripped(images) is None


def test_localizing_a_head_is_localizing_its_brain(head, checkpoints, program, tmp_path):
    volume, _ = head
    words = ("network.groups=4", "data.preprocessing.spacing_mm=12.0")
    words += ("data.preprocessing.shape=[16,16,16]",)
    run = import_run("wdm", checkpoints["wdm"], tmp_path / "run", overrides=words)
    brain = stripped({"T1w": volume})["T1w"]
    raw = {"threshold": "best", "post": [], "normalize": "raw"}
    results = [
        volumediff.load(run).localize((v.array[0], v.affine), method="intensity", **raw)
        for v in (volume, brain)
    ]
    np.testing.assert_array_equal(results[0].map, results[1].map)
    assert results[0].facts["prepared"]["stripped"] is True
    (warning,) = results[0].facts["prepared"]["warnings"]
    assert "lie in the space of sri24, which does not ship" in warning
    assert warning in results[0].remarks
    assert results[1].facts["prepared"] is None
    assert results[0].map.shape == volume.native.shape
