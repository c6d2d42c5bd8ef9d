"""Label diffusion on masks whose denoiser is known in closed form."""

import math
from dataclasses import replace

import pytest
import torch

from volumediff.config import shipped
from volumediff.errors import UsageError
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.samplers.ancestral import Ancestral
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.schedules._base import per_sample
from volumediff.schedules.cosine import Cosine
from volumediff.segmentation._base import load_segmenter
from volumediff.segmentation.label_diffusion import LabelDiffusionSegmenter, SampleMoments
from volumediff.spaces.voxel import Voxel

SCHEDULE = Cosine()
SHAPE = (12, 12, 12)


class TwoPoint(Network):
    """Independent voxels m = ±1 with P(m = 1) = p: E[m | z_t] = tanh(α z / σ² + logit(p) / 2).

    With an image, p is 1/2 plus half of the image, so that certain voxels exist.
    """

    def __init__(self, prior=None):
        super().__init__(1, 1)
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


def model(prior=None, network=None, **recipe):
    network = network or TwoPoint(prior)
    kernel = Gaussian(SCHEDULE, prediction="x0")
    return Model(Voxel(), kernel, network, recipe=LabelDiffusion(**recipe))


def segment(segmenter, trained, x, key):
    everywhere = torch.ones_like(x, dtype=torch.bool)
    return segmenter.segment(
        trained, x, foreground=everywhere, spacing_mm=(1.0, 1.0, 1.0), key=key
    )


def test_streamed_moments_are_the_two_pass_moments():
    x = 3 + torch.randn((17, 2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    moments = SampleMoments()
    for part in x.split((5, 1, 8, 3)):
        moments.update(part)
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(moments.variance, x.var(0, correction=0), rtol=0, atol=1e-6)
    assert moments.count == 17


@pytest.mark.parametrize("prior", [0.1, 0.5])
def test_samples_have_the_prior_frequency(prior):
    segmenter = LabelDiffusionSegmenter(DPMSolverPP(50), samples=16, batch=16)
    found = segment(segmenter, model(prior), torch.zeros(1, 1, *SHAPE), 1)
    count = 16 * math.prod(SHAPE)
    tolerance = 4 * math.sqrt(prior * (1 - prior) / count) + 0.03 * prior
    assert float(found.probabilities.mean()) == pytest.approx(prior, abs=tolerance)


def test_variance_of_binary_samples_and_entropy():
    segmenter = LabelDiffusionSegmenter(DPMSolverPP(50), samples=8, batch=3, keep=True)
    found = segment(segmenter, model(0.5), torch.zeros(1, 1, *SHAPE), 2)
    binary = (found.samples.round() - found.samples).abs().amax(dim=0) < 1e-6
    assert float(binary.double().mean()) > 0.5  # the others stopped just short of ±1
    p, v = found.probabilities[0][binary], found.variance[0][binary]
    torch.testing.assert_close(v, p * (1 - p), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        found.samples.var(0, correction=0), found.variance[0], rtol=0, atol=1e-6
    )
    q = found.probabilities
    entropy = -(torch.xlogy(q, q) + torch.xlogy(1 - q, 1 - q))
    torch.testing.assert_close(found.entropy, entropy, rtol=0, atol=1e-5)
    assert float(found.entropy.max()) <= math.log(2) + 1e-6


def test_the_batch_size_changes_nothing():
    seven = LabelDiffusionSegmenter(Ancestral(5), samples=7, keep=True)
    x = torch.randn((1, 1, 6, 6, 6), generator=torch.Generator().manual_seed(3))
    one, four = (
        segment(
            LabelDiffusionSegmenter(Ancestral(5), samples=7, batch=n, keep=True), model(), x, 3
        )
        for n in (1, 4)
    )
    assert torch.equal(one.samples, four.samples)
    assert torch.equal(one.probabilities, four.probabilities)
    assert torch.equal(one.variance, four.variance)
    other = segment(seven, model(), x, 4)
    assert not torch.equal(one.samples, other.samples)


def test_the_image_decides():
    x = torch.full((1, 1, 6, 6, 6), -1.0)
    x[..., :3] = 1.0
    found = segment(LabelDiffusionSegmenter(samples=2), model(labels=(4,)), x, 5)
    assert torch.equal(found.labels, (x > 0).to(torch.uint8) * 4)
    assert float(found.variance.max()) < 1e-6


class Fixed(TwoPoint):
    """Always the same label map, whatever the state."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, z_t, t, condition=None):
        return torch.tensor(self.channels).view(1, -1, 1, 1, 1).expand_as(z_t).to(z_t)


@pytest.mark.parametrize(
    ("channels", "value", "h"),
    [
        ((-1.0, -1.0), 0, 0.0),
        ((1.0, -1.0), 3, 0.0),
        ((-1.0, 1.0), 7, 0.0),
        ((0.2, -0.6), 3, -0.6 * math.log(0.6) - 2 * 0.2 * math.log(0.2)),
        ((1.0, 0.0), 3, -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)),  # overlap: scaled
    ],
)
def test_labels_and_entropy_of_known_memberships(channels, value, h):
    inner = model(network=Fixed(channels), labels=(3, 7))
    segmenter = LabelDiffusionSegmenter(DPMSolverPP(3), samples=2)
    found = segment(segmenter, inner, torch.zeros(1, 1, 4, 4, 4), 6)
    assert found.labels.unique().tolist() == [value]
    torch.testing.assert_close(found.entropy, torch.full_like(found.entropy, h))


@pytest.mark.parametrize(("absent", "code"), [(-1.0, -0.5), (0.0, 0.25), (-3.0, -2.0)])
def test_memberships_follow_the_code_of_an_absent_label(absent, code):
    """A voxel a quarter of the way from the code of absence to 1 is a member by a quarter."""
    inner = model(network=Fixed((code,)), absent=absent)
    segmenter = LabelDiffusionSegmenter(DPMSolverPP(3), samples=1)
    found = segment(segmenter, inner, torch.zeros(1, 1, 4, 4, 4), 7)
    torch.testing.assert_close(
        found.probabilities, torch.full_like(found.probabilities, 0.25), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", shipped("segmentation"))
def test_shipped_segmenters_build(name):
    segmenter = load_segmenter(name, ["samples=2", "sampler.steps=3"])
    assert segmenter == replace(segmenter, samples=2)
    assert segmenter.sampler.steps == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample=2"], "Did you mean 'samples'"),
        (["samples=many"], r"samples: .* \(got 'many'\)"),
        (["samples=0"], "expected samples >= 1"),
        (["sampler.name=dpmp"], "Did you mean 'dpmpp'"),
        (["name=label_difusion"], "Did you mean 'label_diffusion'"),
    ],
)
def test_wrong_words_are_named(words, message):
    with pytest.raises(UsageError, match=message):
        load_segmenter("label_diffusion", words)


def test_a_model_of_volumes_is_refused_with_the_reason():
    healthy = Model(Voxel(), Gaussian(SCHEDULE, prediction="x0"), TwoPoint())
    with pytest.raises(ValueError, match="recipe=label_diffusion"):
        LabelDiffusionSegmenter().check(healthy)
    LabelDiffusionSegmenter().check(model())
