"""Volumes that processes share: every number is that of one process, in about half the memory."""

import json
from pathlib import Path

import nibabel as nib
import pytest
import torch
from child_processes import run_program, torchrun
from domain_ranks import MODELS
from tiny_runs import figures, tiny, write_data

from volumediff.api.files import localize_files, sample_files
from volumediff.api.loading import load
from volumediff.distributed.mesh import Mesh
from volumediff.errors import UsageError
from volumediff.memory.domain import Domain, current_domain, sharing
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.memory.streaming import stream
from volumediff.networks.unet import UNet
from volumediff.planning.planner import trace
from volumediff.storage import checkpoint
from volumediff.training.loop import train

WHAT = [*MODELS, "autoencoder", "source"]
BOUND = 1e-12
WORDS = [
    *("optim.batch_size=2", "optim.steps=3", "save_every=2", "validation.volumes=2"),
    *("space=wavelet", "network.attention_levels=[1]", "validation.previews=1"),
    *("validation.preview_steps=2", "data.preprocessing.shape=[10,8,8]"),
    "data.split={validation: 0.25, calibration: 0.4}",
]
METHOD = ["threshold.min_volumes=2", "post=[]"]
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_domain import use
from tiny_runs import tiny
from volumediff.distributed.processes import leave
from volumediff.training.loop import train

data, output, words = json.loads(sys.argv[2])
train(tiny(data, output, *words))
use(data, output, output + "-used", domain=2)
leave()
"""


def use(data, run, out, *, domain):
    """Samples, and maps of all cases, into folders."""
    trained = load(run, device="cpu", domain=domain)
    sample_files(trained, f"{out}/samples", 2, overrides=["sampler.steps=2"])
    localize_files(trained, data, f"{out}/maps", method="scan", overrides=METHOD, force=True)


def images(out):
    """Name -> values of every volume below a folder."""
    paths = sorted(Path(out).rglob("*.nii.gz"))
    return {str(p.relative_to(out)): nib.load(p).get_fdata() for p in paths}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What three processes found, each for itself."""
    output = tmp_path_factory.mktemp("domain") / "found.json"
    run_program([*torchrun(3), Path(__file__).with_name("domain_ranks.py"), output])
    return json.loads(output.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", WHAT)
def test_processes_that_share_volumes_equal_one(found, name, size):
    for rank in range(size):
        differences = found[rank][str(size)][name]
        assert differences
        assert max(differences.values()) < BOUND, (rank, differences)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["training", "inference"])
def test_two_processes_hold_about_half_of_the_activations(found, kind):
    for rank in range(2):
        peaks = found[rank]["peaks"]
        assert peaks[f"{kind} shared"] < 0.6 * peaks[f"{kind} one"]
        assert peaks[f"{kind} shared"] == pytest.approx(peaks[f"{kind} planned"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["fill", "fold", "merge", "total"])
def test_what_processes_do_not_tell_each_other_is_missed(found, fault):
    for rank in range(2):
        differences = found[rank]["broken"][fault]
        assert any(not value < 1e-3 for value in differences.values()), differences


@pytest.mark.slow
def test_a_run_of_data_times_domain_equals_one_process(tmp_path):
    data = write_data(tmp_path / "data", cases=8)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    arguments = [str(data), str(shared), [*WORDS, "processes.domain=2"]]
    run_program([*torchrun(4), program, Path(__file__).parent, json.dumps(arguments)])
    train(tiny(data, alone, *WORDS))
    for kind in ("weights", "ema"):
        one, other = (checkpoint.find(run, "last").tensors(kind) for run in (alone, shared))
        assert set(one) == set(other)
        assert max(float((one[n] - other[n]).abs().max()) for n in one) < 1e-6
    for a, b in zip(figures(alone), figures(shared), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert len(list((shared / "previews").glob("*.png"))) == 1
    use(data, shared, tmp_path / "used", domain=1)
    one, other = images(tmp_path / "used"), images(f"{shared}-used")
    assert one.keys() == other.keys()
    assert len(one) > 6, "samples, maps, masks"
    for name, values in one.items():
        assert abs(values - other[name]).max() < 1e-4 * max(abs(values).max(), 1), name
    # Goes on with one process, as with any other number.
    train(tiny(data, shared, *WORDS, "optim.steps=4", "processes.domain=1"))


def test_a_number_of_processes_that_is_no_multiple_is_refused(tmp_path):
    data = write_data(tmp_path / "data")
    with pytest.raises(
        UsageError, match=r"processes\.domain: 2 processes .* got 1 in all; launch"
    ):
        train(tiny(data, tmp_path / "run", "processes.domain=2"))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("depth", [1, 4, 7, 12])
def test_every_plane_has_one_owner(size, depth):
    owners = [Domain(rank, size).own(depth) for rank in range(size)]
    assert [i for lo, hi in owners for i in range(lo, hi)] == list(range(depth))
    assert max(hi - lo for lo, hi in owners) - min(hi - lo for lo, hi in owners) <= 1


def test_grids_of_other_strides_are_cut_at_the_same_places():
    for depth in (16, 18, 21):
        fine, coarse = (Domain(1, 2).own(n)[0] for n in (depth, -(-depth // 2)))
        assert abs(fine - 2 * coarse) <= 1


def test_models_share_volumes_where_they_are_built():
    network = UNet(1, 1, widths=(8, 16), blocks=1)
    assert current_domain().size == 1
    with sharing(Domain.assumed(2)):
        assert MemoryPolicy().streams
        MemoryPolicy().apply(network)
    assert "body" in vars(network)
    MemoryPolicy().apply(network)
    assert "body" not in vars(network)
    assert current_domain().size == 1


def test_a_plan_is_about_one_of_the_processes(tmp_path):
    words = ["data.preprocessing.shape=[32,32,32]", "network.widths=[16,16]", "network.groups=8"]
    alone, shared = (
        trace(tiny(tmp_path, tmp_path / "run", *words, f"processes.domain={n}")) for n in (1, 2)
    )
    one, two = (t.stages["backward"].parts["activations"] for t in (alone, shared))
    assert two < 0.6 * one
    assert shared.stages["backward"].parts["weights"] == alone.stages["backward"].parts["weights"]
    words = [*words, "processes.domain=2", "processes.shard=true"]
    divided = trace(tiny(tmp_path, tmp_path / "run", *words)).stages["backward"].parts
    whole = shared.stages["backward"].parts
    assert divided["activations"] == whole["activations"]
    assert divided["optimizer"] == whole["optimizer"] // 2
    assert divided["weights"] == whole["weights"] * 3 // 2, "a share, and all of them in a step"


def test_what_cannot_be_shared_is_refused_by_name():
    with pytest.raises(NotImplementedError, match=r"flip on a volume .* processes\.domain=1"):
        stream(lambda x: x.flip(2), torch.zeros(1, 2, 9, 8, 6), slab=None, domain=Domain(0, 2))


def test_a_mesh_of_one_process_is_alone():
    assert Mesh().domain.size == Mesh().data.size == 1
