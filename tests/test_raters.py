"""Whose labels are learnt, where several readers have labelled: from targets to segmentations."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from data_sets import nifti
from scipy.stats import chisquare
from tiny_runs import figures, phantom, tiny

from volumediff import load, segment_files
from volumediff.compatibility.methods import level_problem
from volumediff.compatibility.training import supervised_problem, supervision_problem
from volumediff.condition import Condition
from volumediff.data.readers import majority
from volumediff.errors import UsageError
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.raters import ConsensusRater, DrawnRater, MajorityRater, agreed
from volumediff.recipes._base import Subject
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.samples.statistics import Statistics
from volumediff.schedules._base import per_sample
from volumediff.schedules.cosine import Cosine
from volumediff.segmentation.label_ensembles import Consensus
from volumediff.segmentation.segmenters.composed import Composed
from volumediff.spaces.voxel import Voxel
from volumediff.training.loop import train

SCHEDULE = Cosine()


def readers_of(r, values=2, seed=0):
    numbers = np.random.default_rng(seed).integers(0, values, (r, 5, 4, 3))
    return torch.from_numpy(numbers.astype(np.uint8))


@pytest.mark.parametrize("r", [1, 2, 3, 4, 7])
def test_levels_of_consensus_are_nested_and_their_mean_is_the_share_of_votes(r):
    readers = readers_of(r)
    maps = [agreed(readers, c) for c in range(1, r + 1)]
    for more, fewer in itertools.pairwise(maps):
        assert ((fewer > 0) <= (more > 0)).all()
    mean = torch.stack(maps).float().mean(0)[0]
    torch.testing.assert_close(mean, readers.float().mean(0))
    assert np.array_equal(maps[-(-r // 2) - 1].numpy(), majority(readers.numpy()))


def test_levels_of_several_labels_by_hand():
    # votes per column: 1 twice, 2 once; 1 and 2 twice each; 3 three times
    readers = torch.tensor([[1, 1, 3], [1, 1, 3], [2, 2, 3], [0, 2, 0]], dtype=torch.uint8)
    readers = readers[:, None, None, :]
    assert [agreed(readers, c).flatten().tolist() for c in (1, 2, 3, 4)] == [
        [1, 1, 3],
        [1, 1, 3],
        [0, 0, 3],
        [0, 0, 0],
    ]


def test_drawn_readers_and_levels_are_uniform():
    readers = torch.arange(1, 5, dtype=torch.uint8).view(4, 1, 1, 1)
    label, keys = readers[:1], range(2000)
    drawn = Counter(int(DrawnRater().opinion(label, readers, key=k).label) for k in keys)
    told = Counter(ConsensusRater().opinion(label, readers, key=k).level for k in keys)
    assert sorted(drawn) == [1, 2, 3, 4]
    assert sorted(told) == [0.25, 0.5, 0.75, 1.0]
    assert min(chisquare(list(counts.values())).pvalue for counts in (drawn, told)) > 1e-3


def test_a_consensus_has_the_votes_of_its_level():
    readers = readers_of(4, seed=1)
    for key in range(12):
        opinion = ConsensusRater().opinion(readers[:1], readers, key=key)
        votes = readers.sum(0, keepdim=True)
        assert torch.equal(opinion.label > 0, votes >= 4 * opinion.level)


def test_the_majority_is_the_label_that_was_prepared():
    readers = readers_of(3)
    label = torch.from_numpy(majority(readers.numpy()))
    for key in range(5):
        assert torch.equal(MajorityRater().opinion(label, readers, key=key).label, label)


@pytest.mark.parametrize("raters", [MajorityRater(), DrawnRater(), ConsensusRater()])
def test_targets_hold_the_opinion_and_its_level(raters):
    readers = readers_of(4, values=3, seed=2)
    label = torch.from_numpy(majority(readers.numpy()))
    recipe = LabelDiffusion(labels=(1, 2), raters=raters)
    subject = Subject(torch.zeros(1, 5, 4, 3), label, readers=readers)
    target = recipe.target(subject, atlas=None, key=9)
    opinion = raters.opinion(label, readers, key=9)
    assert target.scalar == opinion.level
    assert recipe.scalar_count == int(raters.tells)
    assert torch.equal(target.x > 0, torch.cat([opinion.label == v for v in (1, 2)]))


class AsAgreed(Network):
    """Independent voxels m = ±1 with P(m = 1) = 1 - level, the last scalar that it is told."""

    def __init__(self):
        super().__init__(1, 1, image_channels=1)
        self.seen = []

    @property
    def stride(self):
        return (1, 1, 1)

    def body(self, x, e):
        return x

    def forward(self, z_t, t, condition=None):
        alpha, sigma = (per_sample(a, z_t) for a in SCHEDULE(t))
        self.seen.append(condition.scalars.clone())
        p = per_sample(1 - condition.scalars[:, -1], z_t)
        return torch.tanh(alpha * z_t / sigma**2 + torch.logit(p, eps=1e-6).to(z_t.dtype) / 2)


def test_levels_reach_the_network_and_their_mean_is_soft():
    network = AsAgreed()
    recipe = LabelDiffusion(raters=ConsensusRater(), scalars=("age",))
    kernel = Gaussian(SCHEDULE, prediction="x0")
    model = Model(Voxel(), kernel, network, recipe=recipe)
    method = Composed(sampler=DPMSolverPP(30), samples=3, ensemble=(Consensus(4),), batch=5)
    method.check(model)
    x = torch.zeros(1, 1, 10, 10, 10)
    found = method.segment(
        model,
        x,
        foreground=x > -1,
        spacing_mm=(1.0, 1.0, 1.0),
        key=1,
        condition=Condition(scalars=torch.tensor([[0.7]])),
    )
    told = torch.cat(network.seen)
    assert torch.equal(told[:, 0], torch.full_like(told[:, 0], 0.7))
    assert sorted(set(told[:, 1].tolist())) == [0.25, 0.5, 0.75, 1.0]
    # of 1 - c / 4 over the four levels
    assert float(found.probabilities.mean()) == pytest.approx(0.375, abs=0.02)
    assert found.samples.shape[0] == 12


def test_methods_and_runs_must_agree_about_levels():
    kernel = Gaussian(SCHEDULE, prediction="x0")
    told = Model(Voxel(), kernel, AsAgreed(), recipe=LabelDiffusion(raters=ConsensusRater()))
    plain = Model(Voxel(), kernel, AsAgreed(), recipe=LabelDiffusion(raters=DrawnRater()))
    Composed().check(plain)
    Composed(ensemble=(Consensus(3),)).check(told)
    with pytest.raises(ValueError, match=r"add \{name: consensus, readers: R\} to ensemble"):
        Composed().check(told)
    with pytest.raises(ValueError, match=r"train with recipe.raters=consensus"):
        Composed(ensemble=(Consensus(3),)).check(plain)
    assert level_problem(torch.nn.Identity(), levels=False) is None


def write_readers(root, cases=5, readers=3):
    rows = ["participant_id\tage"]
    for i in range(cases):
        image = phantom(i)
        nifti(root / f"images/sub-{i:02d}_T1w.nii.gz", image, (3, 3, 3))
        for n in range(1, readers + 1):
            label = (image > 145 + 8 * n).astype(np.uint8)
            nifti(root / f"labels/sub-{i:02d}_reader-{n}_mask.nii.gz", label, (3, 3, 3))
        rows.append(f"sub-{i:02d}\t{20 + 3 * i}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize("raters", ["drawn", "consensus"])
def test_a_run_learns_from_readers_and_segments(raters, tmp_path):
    data = write_readers(tmp_path / "data")
    recipe = f"recipe={{name: label_diffusion, raters: {raters}, scalars: [age]}}"
    selects = "validation.best={volumes: 1, steps: 2}"
    config = tiny(data, tmp_path / "run", recipe, "crop=[4,4,4]", selects)
    train(config)
    rows = figures(tmp_path / "run")
    assert any("loss" in row for row in rows)
    assert any("dice" in row for row in rows)
    scalars = Statistics.load(tmp_path / "run").scalars
    assert list(scalars) == ["age"]
    run = load(tmp_path / "run", device="cpu")
    words = ["samples=2", "sampler.steps=2"]
    if raters == "consensus":
        with pytest.raises(UsageError, match="consensus, readers: R"):
            segment_files(run, data, tmp_path / "out", overrides=words)
        words.append("ensemble=[{name: consensus, readers: 3}]")
    segment_files(run, data, tmp_path / "out", overrides=words, write_samples=True)
    drawn = list((tmp_path / "out").glob("sub-00_desc-sample*_dseg.nii.gz"))
    assert len(drawn) == 2 * (3 if raters == "consensus" else 1)


def test_levels_are_for_diffusions_alone():
    told, drawn = LabelDiffusion(raters=ConsensusRater()), LabelDiffusion(raters=DrawnRater())
    assert "majority or drawn" in str(supervised_problem(told, Voxel()))
    assert "majority or drawn" in str(supervision_problem(told))
    assert supervised_problem(drawn, Voxel()) is None
    assert supervision_problem(drawn) is None
