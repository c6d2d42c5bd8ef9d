"""Segmentation methods on masks whose denoiser is known in closed form."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch

from volumediff import config
from volumediff.codings.distance import Distance
from volumediff.codings.one_hot import OneHot
from volumediff.codings.regions import Regions
from volumediff.codings.signed import Signed
from volumediff.config import config_path, load, shipped
from volumediff.errors import UsageError
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.samplers.ancestral import Ancestral
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.schedules._base import per_sample
from volumediff.schedules.cosine import Cosine
from volumediff.segmentation import label_posts
from volumediff.segmentation.label_ensembles import Consensus, Flips, Times, members
from volumediff.segmentation.label_fusions import LogMean, Staple, StepUncertainty, Vote, staple
from volumediff.segmentation.method_files import load_segmenter
from volumediff.segmentation.predictors.one_step import OneStep
from volumediff.segmentation.result import Segmentation
from volumediff.segmentation.segmenters.composed import Composed, SampleMoments
from volumediff.settings.run_config import load_run_config
from volumediff.spaces.voxel import Voxel

SCHEDULE = Cosine()
SHAPE = (12, 12, 12)
SPACING = (1.0, 1.0, 1.0)


class TwoPoint(Network):
    """Independent voxels m = ±1 with P(m = 1) = p: E[m | z_t] = tanh(α z / σ² + logit(p) / 2).

    With an image, p is 1/2 plus half of the image, so that certain voxels exist.
    """

    def __init__(self, prior=None):
        super().__init__(1, 1, image_channels=1)
        self.prior = prior

    @property
    def stride(self):
        return (1, 1, 1)

    def body(self, x, e):
        return x

    def forward(self, z_t, t, condition=None):
        alpha, sigma = (per_sample(a, z_t) for a in SCHEDULE(t))
        p = self.prior
        p = (1 + condition.image.clamp(-1, 1)) / 2 if p is None else torch.tensor(p)
        return torch.tanh(alpha * z_t / sigma**2 + torch.logit(p, eps=1e-6).to(z_t.dtype) / 2)


def model(prior=None, network=None, absent=-1.0, **recipe):
    network = network or TwoPoint(prior)
    kernel = Gaussian(SCHEDULE, prediction="x0")
    recipe = LabelDiffusion(coding=Signed(absent), **recipe)
    return Model(Voxel(), kernel, network, recipe=recipe)


def segment(segmenter, trained, x, key):
    everywhere = torch.ones_like(x, dtype=torch.bool)
    return segmenter.segment(trained, x, foreground=everywhere, spacing_mm=SPACING, key=key)


def image(seed, *shape):
    return torch.randn((1, 1, *shape), generator=torch.Generator().manual_seed(seed))


def test_streamed_moments_are_the_two_pass_moments():
    x = 3 + torch.randn((17, 2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    moments = SampleMoments()
    for each in x:
        moments.update(each)
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(moments.variance, x.var(0, correction=0), rtol=0, atol=1e-6)
    assert moments.count == 17


@pytest.mark.parametrize("prior", [0.1, 0.5])
def test_samples_have_the_prior_frequency(prior):
    segmenter = Composed(sampler=DPMSolverPP(50), samples=16, batch=16)
    found = segment(segmenter, model(prior), torch.zeros(1, 1, *SHAPE), 1)
    count = 16 * math.prod(SHAPE)
    tolerance = 4 * math.sqrt(prior * (1 - prior) / count) + 0.03 * prior
    assert float(found.probabilities.mean()) == pytest.approx(prior, abs=tolerance)
    assert float(found.votes.mean()) == pytest.approx(prior, abs=tolerance)
    assert found.samples.shape == (16, *SHAPE)
    torch.testing.assert_close(found.votes[0, 0], (found.samples == 1).float().mean(0))


def test_variance_of_binary_samples_and_entropy():
    found = segment(
        Composed(sampler=DPMSolverPP(50), samples=8, batch=3),
        model(0.5),
        torch.zeros(1, 1, *SHAPE),
        2,
    )
    p, v = found.probabilities, found.variance
    decided = (p - found.votes).abs() < 1e-6  # elsewhere a sample stopped short of ±1
    assert float(decided.double().mean()) > 0.5
    torch.testing.assert_close(v[decided], (p * (1 - p))[decided], rtol=0, atol=1e-5)
    entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))
    torch.testing.assert_close(found.entropy, entropy, rtol=0, atol=1e-5)
    assert float(found.entropy.max()) <= math.log(2) + 1e-6


def test_the_batch_size_changes_nothing():
    x = image(3, 6, 6, 6)
    one, four = (
        segment(Composed(sampler=Ancestral(5), samples=7, batch=n), model(), x, 3) for n in (1, 4)
    )
    assert torch.equal(one.samples, four.samples)
    assert torch.equal(one.probabilities, four.probabilities)
    assert torch.equal(one.variance, four.variance)
    other = segment(Composed(sampler=Ancestral(5), samples=7), model(), x, 4)
    assert not torch.equal(one.samples, other.samples)
    more = segment(Composed(sampler=Ancestral(5), samples=9), model(), x, 3)
    assert torch.equal(more.samples[:7], one.samples)


def test_the_image_decides():
    x = torch.full((1, 1, 6, 6, 6), -1.0)
    x[..., :3] = 1.0
    for predictor in (Composed().predictor, OneStep()):
        segmenter = Composed(predictor, samples=2)
        found = segment(segmenter, model(labels=(4,)), x, 5)
        assert torch.equal(found.labels, (x > 0).to(torch.uint8) * 4)
        assert float(found.variance.max()) < 1e-6


class Fixed(TwoPoint):
    """Always the same label map, whatever the state."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, z_t, t, condition=None):
        return torch.tensor(self.channels).view(1, -1, 1, 1, 1).expand_as(z_t).to(z_t)


def odds(*shares):
    """Entropy of independent labels given that no two of them are true."""
    background = math.prod(1 - u for u in shares)
    alone = [u * math.prod(1 - v for j, v in enumerate(shares) if j != i) for i, u in
             enumerate(shares)]  # fmt: skip
    p = [a / (background + sum(alone)) for a in (background, *alone)]
    return -sum(a * math.log(a) for a in p if a)


@pytest.mark.parametrize(
    ("channels", "value", "h"),
    [
        ((-1.0, -1.0), 0, 0.0),
        ((1.0, -1.0), 3, 0.0),
        ((-1.0, 1.0), 7, 0.0),
        ((0.2, -0.6), 3, odds(0.6, 0.2)),
        ((-0.06, -0.06), 0, odds(0.47, 0.47)),  # two undecided labels leave the background
        ((1.0, 0.0), 3, 0.0),
        ((1.0, 1.0), 3, math.log(2)),  # two certain labels share the voxel
    ],
)
def test_labels_and_entropy_of_known_memberships(channels, value, h):
    inner = model(network=Fixed(channels), labels=(3, 7))
    segmenter = Composed(sampler=DPMSolverPP(3), samples=2)
    found = segment(segmenter, inner, torch.zeros(1, 1, 4, 4, 4), 6)
    assert found.labels.unique().tolist() == [value]
    torch.testing.assert_close(found.entropy, torch.full_like(found.entropy, h))


@pytest.mark.parametrize(("absent", "code"), [(-1.0, -0.5), (0.0, 0.25), (-3.0, -2.0)])
def test_memberships_follow_the_code_of_an_absent_label(absent, code):
    """A voxel a quarter of the way from the code of absence to 1 is a member by a quarter."""
    inner = model(network=Fixed((code,)), absent=absent)
    segmenter = Composed(sampler=DPMSolverPP(3), samples=1)
    found = segment(segmenter, inner, torch.zeros(1, 1, 4, 4, 4), 7)
    torch.testing.assert_close(
        found.probabilities, torch.full_like(found.probabilities, 0.25), rtol=0, atol=1e-5
    )
    assert found.variance is None
    assert found.samples is None


def test_signed_distance_is_the_brute_force_distance():
    mask = torch.zeros((1, 6, 5, 7), dtype=torch.bool)
    mask[0, 1:4, 2:4, 1:6] = True
    spacing = (1.0, 2.0, 0.5)
    x = Distance(limit_mm=3.0).encode(mask, spacing_mm=spacing)
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in mask.shape[1:]), indexing="ij"))
    places = places.flatten(1).T.double() * torch.tensor(spacing, dtype=torch.float64)
    flat = mask.flatten()
    gaps = torch.cdist(places, places)
    inside = gaps[:, ~flat].amin(1) * flat
    outside = gaps[:, flat].amin(1) * ~flat
    expected = ((inside - outside) / 3.0).clamp(-1, 1).view(mask.shape).float()
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
    far = Distance().encode(torch.zeros_like(mask), spacing_mm=spacing)
    assert torch.equal(far, torch.full_like(far, -1))


def test_regions_are_read_as_labels_that_later_regions_overwrite():
    """The chance of every label, summed over all outcomes of three independent regions."""
    coding = Regions(((1, 2, 3), (2, 3), (3,)))
    u = torch.rand(2, 3, 2, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.zeros_like(u)
    for outcome in product((0, 1), repeat=3):
        chance = torch.ones_like(u[:, 0])
        for i, there in enumerate(outcome):
            chance = chance * (u[:, i] if there else 1 - u[:, i])
        written = max((i for i, there in enumerate(outcome) if there), default=None)
        if written is not None:
            expected[:, written] += chance
    found = coding.decode(2 * u - 1, spacing_mm=(1.0, 1.0, 1.0))
    torch.testing.assert_close(found, expected)
    masks = torch.eye(3, dtype=torch.bool).view(3, 3, 1, 1)
    nested = Regions().encode(masks, spacing_mm=(1.0, 1.0, 1.0))
    assert torch.equal(nested, coding.encode(masks, spacing_mm=(1.0, 1.0, 1.0)))


@pytest.mark.parametrize("members", [((1,), (1, 2)), ((2,), (1,)), ((1, 4), (2,)), ((1,), ())])
def test_regions_that_labels_cannot_be_told_from_are_refused(members):
    with pytest.raises(ValueError, match=r"^members: expected"):
        Regions(members)


def test_one_hot_codes_have_the_background_first():
    masks = torch.zeros((2, 2, 2, 2), dtype=torch.bool)
    masks[1, 0, 0, 0] = True
    x = OneHot().encode(masks, spacing_mm=SPACING)
    assert x[:, 0, 0, 0].tolist() == [-1, -1, 1]
    assert x[:, 1, 1, 1].tolist() == [1, -1, -1]


# ensembles


def test_members_are_all_combinations_and_samples_keep_their_draws():
    every = members(3, [Flips("dw"), Times((0.1, 0.4))], key=5)
    assert len(every) == 3 * 4 * 2
    assert [d.number for d in every] == list(range(24))
    assert {(d.flips, d.time) for d in every} == {
        (f, t) for f in ((), (0,), (2,), (0, 2)) for t in (0.1, 0.4)
    }
    assert len({d.key for d in every}) == 3 * 2  # flips share the noise
    assert [d.key for d in members(5, [], key=5)][:3] == [d.key for d in members(3, [], key=5)]
    levels = [d.level for d in members(1, [Consensus(4)], key=0)]
    assert levels == [0.25, 0.5, 0.75, 1.0]


def test_flips_come_back_and_average():
    """A predictor that looks at a voxel's place would differ; one of voxels alone does not."""
    x = image(8, 4, 6, 5)
    plain = segment(Composed(OneStep(), samples=1), model(), x, 1)
    flipped = segment(Composed(OneStep(), samples=1, ensemble=(Flips(),)), model(), x, 1)
    assert len(flipped.samples) == 8
    # At t = 1 the closed form does not depend on the noise, so that all members agree.
    torch.testing.assert_close(flipped.probabilities, plain.probabilities, rtol=0, atol=1e-3)
    assert float(flipped.variance.max()) < 1e-4


# fusions


def fused(fusion, maps):
    fusing = fusion.start()
    for each in maps:
        fusing.update(each, 1.0)
    return fusing.result()


def test_vote_counts_label_maps():
    y = torch.tensor([[0.6, 0.3], [0.45, 0.5], [0.2, 0.3]])[:, :, None, None, None]
    assert fused(Vote(), y).flatten().tolist() == pytest.approx([1 / 3, 1 / 3])


def test_log_mean_is_the_normalised_geometric_mean():
    y = torch.tensor([[0.8], [0.2], [0.5]])[:, :, None, None, None]
    a, b = (0.8 * 0.2 * 0.5) ** (1 / 3), (0.2 * 0.8 * 0.5) ** (1 / 3)
    assert float(fused(LogMean(), y)) == pytest.approx(a / (a + b), abs=1e-6)


def raters(seed, n=5, size=2000, prior=0.2):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(size, generator=generator) < prior
    flip = torch.rand((n, size), generator=generator) < torch.linspace(0.03, 0.3, n)[:, None]
    return truth, truth ^ flip


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_staple_is_that_of_simpleitk(seed):
    import SimpleITK as sitk

    truth, masks = raters(seed)
    images = [sitk.GetImageFromArray(m.numpy().astype("uint8").reshape(20, 10, 10)) for m in masks]
    expected = torch.from_numpy(sitk.GetArrayFromImage(sitk.STAPLE(images, 1.0))).flatten()
    found = staple(masks)
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-6)
    right = float(((found > 0.5) == truth).double().mean())
    majority = float(((masks.float().mean(0) > 0.5) == truth).double().mean())
    squared = float(((masks.float().mean(0) ** 2 > 0.5) == truth).double().mean())
    assert right >= majority > squared  # the square of the mean is no STAPLE


def test_staple_of_degenerate_masks():
    empty = torch.zeros((4, 10), dtype=torch.bool)
    assert torch.equal(staple(empty), torch.zeros(10, dtype=torch.float64))
    assert torch.equal(staple(~empty), torch.ones(10, dtype=torch.float64))
    one = torch.arange(10)[None] % 3 == 0
    assert torch.equal(staple(one), one[0].double())
    two_of_five = torch.zeros((5, 100), dtype=torch.bool)
    two_of_five[:2, :10] = True
    assert staple(two_of_five).isfinite().all()


def test_staple_fuses_each_label():
    _, a = raters(3)
    y = torch.stack([a.float(), (~a).float() * 0.4], dim=1).view(5, 2, 20, 10, 10)
    p = fused(Staple(), y)
    torch.testing.assert_close(p[0].flatten().double(), staple(a), rtol=0, atol=1e-6)
    assert float(p[1].max()) == 0  # never the largest


def test_step_uncertainty_is_the_published_sum():
    fusing = StepUncertainty().start()
    steps = torch.tensor([[0.2, 0.6], [0.7, 0.9]])  # two steps, two members
    for member in range(2):
        for step in range(2):
            fusing.estimate(steps[step, member].view(1, 1, 1, 1), step, 2)
        fusing.update(steps[1, member].view(1, 1, 1, 1), 1.0)
    total = [0.0, 0.0]
    for i, p in enumerate((0.4, 0.8), start=1):
        for k, q in enumerate((1 - p, p)):
            u = -q * math.log(q)
            total[k] += math.exp(1 / (1 + math.exp(-i / 2)) * (1 - u)) * q
    assert float(fusing.result()) == pytest.approx(total[1] / sum(total), abs=1e-6)


def test_step_uncertainty_sees_every_step_of_the_chain():
    segmenter = Composed(sampler=DPMSolverPP(4), samples=2, fusion=StepUncertainty())
    x = image(9, 5, 5, 5)
    found = segment(segmenter, model(), x, 1)
    assert ((found.probabilities > 0.5) == (x > 0)).float().mean() > 0.8


# finishing


def test_posts_change_the_label_map_alone():
    x = torch.full((1, 1, 9, 9, 9), -1.0)
    x[..., 1:5, 1:5, 1:5] = 1.0
    x[..., 3, 3, 3] = -1.0
    x[..., 7, 7, 7] = 1.0
    plain = segment(Composed(samples=1), model(), x, 1)
    posts = (label_posts.LargestComponentLabelPost(), label_posts.FillHoles())
    found = segment(Composed(samples=1, post=posts), model(), x, 1)
    assert torch.equal(found.probabilities, plain.probabilities)
    assert int(plain.labels.sum()) == 4**3 - 1 + 1
    assert int(found.labels.sum()) == 4**3
    assert int(found.labels[..., 7, 7, 7]) == 0
    low = label_posts.ThresholdLabelPost(0.2)
    p = torch.full((1, 1, 2, 2, 2), 0.3)
    labels = low(torch.zeros(1, 1, 2, 2, 2, dtype=torch.uint8), values=(5,), probabilities=p,
                 spacing_mm=SPACING)  # fmt: skip
    assert labels.unique().tolist() == [5]


def test_pieces_are_counted_in_millilitres():
    labels = torch.zeros((1, 1, 8, 8, 8), dtype=torch.uint8)
    labels[..., :2, :2, :2] = 2
    labels[..., 6, 6, 6] = 2
    p = (labels > 0).float()
    for volume, kept in ((0.008, 9), (0.009, 8), (0.064, 8), (0.065, 0)):
        found = label_posts.MinComponentLabelPost(volume)(
            labels, values=(2,), probabilities=p, spacing_mm=(2.0, 2.0, 2.0)
        )
        assert int((found > 0).sum()) == kept, volume


# methods as files


@pytest.mark.parametrize("name", shipped("segmentation"))
def test_shipped_methods_build(name):
    assert isinstance(load_segmenter(name), Composed)
    only = load(config_path("segmentation", name)).get("only_for", {})
    pipelines = {"latent": "latent_64", "pseudo3d": "pseudo3d_64", "voxel": "patch_64"}
    pipeline = next((pipelines[v] for v in only.values() if v in pipelines), "wavelet_64")
    load_run_config(pipeline, [f"method={name}", "data.root=x"])


def test_words_change_a_method():
    segmenter = load_segmenter("label_diffusion", ["samples=2", "sampler.steps=3"])
    assert segmenter == replace(segmenter, samples=2)
    assert segmenter.sampler.steps == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample=2"], "Did you mean 'samples'"),
        (["samples=many"], "samples: expected a whole number, got 'many'"),
        (["samples=0"], "expected samples >= 1"),
        (["sampler.name=dpmp"], "Did you mean 'dpmpp'"),
        (["predictor=sample"], "Did you mean 'sampled'"),
        (["predictor=one_step"], "sampler: expected none for the predictor OneStep"),
        (["predictor=one_step", "sampler=null", "fusion=step_uncertainty"], "needs the steps"),
    ],
)
def test_wrong_words_are_named(words, message):
    with pytest.raises(UsageError, match=message):
        load_segmenter("label_diffusion", words)


def test_a_method_trains_over_a_pipeline(tmp_path):
    found = load_run_config("wavelet_64", ["method=label_diffusion", "recipe.labels=[1,2]"])
    assert found.recipe == {"name": "label_diffusion", "labels": [1, 2], "coding": "signed"}
    assert found.method == "label_diffusion"
    assert found.network == load_run_config("wavelet_64").network
    with pytest.raises(UsageError, match="segmentation configuration 'segdif'"):
        load_run_config("wavelet_64", ["method=segdif"])
    own = tmp_path / "own.yaml"
    own.write_text("train: {network: {widths: [8, 8]}, crop: null, noise: null}\nsamples: 2\n")
    found = load_run_config("wavelet_64", [f"method={own}"])
    assert found.network["name"] == "unet"
    assert found.network["widths"] == [8, 8]
    assert found.noise == "gaussian"  # the default, as the key of the pipeline is taken out
    assert load_segmenter(str(own)).samples == 2


@pytest.mark.parametrize(
    ("below", "over", "expected"),
    [
        ({"a": {"name": "x", "n": 1}}, {"a": {"n": 2}}, {"a": {"name": "x", "n": 2}}),
        ({"a": {"name": "x", "n": 1}}, {"a": {"name": "y"}}, {"a": {"name": "y"}}),
        ({"a": {"name": "x", "n": 1}}, {"a": "x"}, {"a": {"name": "x", "n": 1}}),
        ({"a": {"name": "x", "n": 1}}, {"a": "y"}, {"a": "y"}),
        ({"a": "x"}, {"a": {"n": 2}}, {"a": {"name": "x", "n": 2}}),
        ({"a": 1, "b": [1]}, {"a": None, "b": [2]}, {"b": [2]}),
    ],
)
def test_trees_lie_over_each_other(below, over, expected):
    assert config.overlaid(below, over) == expected


def test_a_model_of_volumes_is_refused_with_the_reason():
    healthy = Model(Voxel(), Gaussian(SCHEDULE, prediction="x0"), TwoPoint())
    with pytest.raises(ValueError, match="recipe=label_diffusion"):
        Composed().check(healthy)
    Composed().check(model())


def test_labels_are_those_of_the_post_if_there_is_one():
    p = torch.tensor([0.7]).view(1, 1, 1, 1, 1)
    found = Segmentation((2,), p)
    assert found.labels.item() == 2
    assert replace(found, final=torch.zeros_like(found.labels)).labels.item() == 0


def test_a_threshold_is_fitted_label_by_label():
    """Label 2 is right where p reaches 0.3, label 5 where it reaches 0.7."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand((1, 2, 8, 8, 8), generator=generator)
    p = torch.where(p.argmax(1, keepdim=True) == torch.tensor([0, 1]).view(1, 2, 1, 1, 1), p, 0.0)
    truth = torch.where(p[:, :1] >= 0.3, 2, 0) + torch.where(p[:, 1:] >= 0.7, 5, 0)
    truth = truth.to(torch.uint8)
    post = label_posts.FittedThreshold(levels=(0.1, 0.3, 0.5, 0.7, 0.9))
    assert post.needs_fit
    found = post.fit([(p, truth), (p, truth)], (2, 5))
    assert found.at == (0.3, 0.7)
    labels = found(torch.zeros_like(truth), values=(2, 5), probabilities=p, spacing_mm=SPACING)
    assert torch.equal(labels, truth)
    nothing = post.fit([(torch.zeros_like(p), torch.zeros_like(truth))], (2, 5))
    assert nothing.at == (0.5, 0.5)


def test_a_method_without_its_fit_says_what_the_members_do():
    plain, x = Composed(samples=1), image(4, 5, 5, 5)
    unfitted = replace(plain, post=(label_posts.FittedThreshold(),))
    assert unfitted.needs_fit
    a, b = (segment(each, model(), x, 3) for each in (plain, unfitted))
    assert torch.equal(a.labels, b.labels)
    low = unfitted.fit([(b, torch.ones_like(b.labels))])
    assert not low.needs_fit
    assert unfitted.with_fitted(low.fitted) == low
    both = replace(plain, post=(label_posts.FittedThreshold(at=(0.9,)), *unfitted.post))
    half = both.fit([(b, torch.ones_like(b.labels))])
    assert both.with_fitted(half.fitted) == half
    assert int(segment(low, model(), x, 3).labels.sum()) >= int(a.labels.sum())
