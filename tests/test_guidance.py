"""Guidance, by contract and on classes whose score is known."""

import pytest
import torch
from oracles import class_gaussian, state_like

from volumediff.classification import ClassPosterior
from volumediff.condition import Condition
from volumediff.guidance._base import with_classes
from volumediff.guidance.chain import Chain
from volumediff.guidance.classifier import ClassifierGuidance
from volumediff.guidance.classifier_free import ClassifierFree
from volumediff.guidance.dynamic_clipping import DynamicClipping
from volumediff.guidance.finite_difference import FiniteDifference
from volumediff.guidance.sum import Sum
from volumediff.kernels.gaussian import Gaussian
from volumediff.samplers.ddim import DDIM
from volumediff.schedules.linear import LinearSchedule

SCHEDULE = LinearSchedule(zero_terminal_snr=True)
MEANS, STD = [-0.5, 0.5], 0.4
DENOISE = class_gaussian(SCHEDULE, MEANS, STD)
LABEL = Condition(label=torch.tensor([0, 1, 1]))
NULL = Condition(label=torch.tensor([2, 2, 2]))


def log_posterior(z_t, t):
    """log p(y | z_t) of the two classes, in closed form; a linear log-odds per voxel."""
    alpha, sigma = (a[:, None, None, None, None] for a in SCHEDULE(t))
    variance = alpha**2 * STD**2 + sigma**2
    fits = [-((z_t - alpha * m) ** 2 / variance / 2).flatten(1).sum(1) for m in MEANS]
    return torch.log_softmax(torch.stack(fits, 1), 1)


EXACT = ClassPosterior(log_posterior, SCHEDULE, 2, "exact")


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def recorded(asked):
    def denoise(z_t, t, condition):
        asked.append(condition.label.tolist())
        return DENOISE(z_t, t, condition)

    return denoise


@pytest.mark.parametrize(("weight", "condition"), [(1.0, LABEL), (0.0, NULL)])
def test_weights_one_and_zero_are_single_passes(weight, condition):
    asked = []
    z, t = state_like(0.3, -0.2, 1.5), at(0.3, 0.6, 0.9)
    found = ClassifierFree(weight, classes=2)(recorded(asked))(z, t, LABEL)
    expected = DENOISE(z, t, condition)
    assert torch.equal(found.eps, expected.eps)
    assert torch.equal(found.x0, expected.x0)
    assert torch.equal(found.v, expected.v)
    assert asked == [condition.label.tolist()]


def test_other_weights_extrapolate_in_two_passes():
    asked = []
    z, t = state_like(0.3, -0.2, 1.5), at(0.3, 0.6, 0.9)
    found = ClassifierFree(2.5, classes=2)(recorded(asked))(z, t, LABEL)
    away, towards = DENOISE(z, t, NULL), DENOISE(z, t, LABEL)
    expected = away.eps + 2.5 * (towards.eps - away.eps)
    torch.testing.assert_close(found.eps, expected, rtol=0, atol=1e-12)
    assert sorted(asked) == [[0, 1, 1], [2, 2, 2]]


def test_other_conditions_pass_through():
    seen = []

    def denoise(z_t, t, condition):
        seen.append(condition)
        return DENOISE(z_t, t, condition)

    scalars = torch.randn(3, 2)
    condition = LABEL.replace(scalars=scalars)
    guided = ClassifierFree(2.0, classes=2)(denoise)
    guided(state_like(0.0, 0.0, 0.0), at(0.5, 0.5, 0.5), condition)
    assert len(seen) == 2
    assert all(c.scalars is scalars for c in seen)
    assert condition.label.tolist() == [0, 1, 1]


def test_weight_moves_samples_away_from_the_other_class():
    z = state_like(*torch.linspace(-1.5, 1.5, 33).tolist())
    healthy = Condition(label=torch.zeros(33, dtype=torch.int64))
    sampler, kernel = DDIM(60), Gaussian(SCHEDULE)
    means = []
    for weight in (0.0, 1.0, 3.0):
        denoise = ClassifierFree(weight, classes=2)(DENOISE)
        times = sampler.times(SCHEDULE)
        means.append(sampler.sample(denoise, kernel, z, times, condition=healthy).mean().item())
    assert means[0] == pytest.approx(0.0, abs=1e-6)
    assert means[1] == pytest.approx(MEANS[0], abs=1e-2)
    assert means[2] < MEANS[0] - 0.1


def test_errors_say_what_is_missing():
    with pytest.raises(ValueError, match=r"needs Condition\.label"):
        ClassifierFree(2.0, classes=2)(DENOISE)(state_like(0.0), at(0.5), Condition())
    with pytest.raises(
        ValueError, match="got classes = 0; train with the class_conditional recipe"
    ):
        ClassifierFree(2.0, classes=0)
    with pytest.raises(ValueError, match=r"expected weight >= 0, got -1\.0"):
        ClassifierFree(-1.0, classes=2)


def test_finite_differences_extrapolate_away_from_the_other_class():
    z, t = state_like(0.3, -0.2, 1.5), at(0.3, 0.6, 0.9)
    healthy = Condition(label=torch.tensor([0, 0, 0]))
    asked = []
    found = FiniteDifference(1.5, classes=2)(recorded(asked))(z, t, healthy)
    sick = DENOISE(z, t, Condition(label=torch.tensor([1, 1, 1])))
    own = DENOISE(z, t, healthy)
    torch.testing.assert_close(found.x0, own.x0 + 1.5 * (own.x0 - sick.x0), rtol=0, atol=1e-12)
    assert asked == [[0, 0, 0], [1, 1, 1]]
    asked.clear()
    FiniteDifference(0.0, classes=2)(recorded(asked))(z, t, healthy)
    assert asked == [[0, 0, 0]]
    # of equal Gaussians the scores differ by a constant: the mean moves by w (m_0 - m_1) times it
    alpha, sigma = SCHEDULE(t)
    shift = (alpha**2 * STD**2 / (alpha**2 * STD**2 + sigma**2) - 1) * 1.5
    expected = own.x0.flatten() - shift * (MEANS[0] - MEANS[1])
    torch.testing.assert_close(found.x0.flatten(), expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="other: expected one of the 2 classes, got 2"):
        FiniteDifference(other=2, classes=2)
    with pytest.raises(ValueError, match=r"needs Condition\.label"):
        FiniteDifference(classes=2)(DENOISE)(z, t, Condition())


def test_terms_add_up_with_their_weights():
    z, t = state_like(0.3, -0.2, 1.5), at(0.3, 0.6, 0.9)
    a, b = ClassifierFree(3.0, classes=2), FiniteDifference(2.0, other=0, classes=2)
    base = DENOISE(z, t, LABEL)
    found = Sum((a, b), weights=(0.5, 2.0))(DENOISE)(z, t, LABEL)
    parts = [g(DENOISE)(z, t, LABEL) for g in (a, b)]
    for name in ("x0", "eps", "v"):
        own, first, second = (getattr(p, name) for p in (base, *parts))
        expected = own + 0.5 * (first - own) + 2.0 * (second - own)
        torch.testing.assert_close(getattr(found, name), expected, rtol=0, atol=1e-12)
    alone = Sum((a,))(DENOISE)(z, t, LABEL)
    torch.testing.assert_close(alone.eps, parts[0].eps, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="got 2 terms and 1 weights"):
        Sum((a, b), weights=(1.0,))


def test_a_chain_guides_the_guided():
    z, t = state_like(0.3, -0.2, 1.5), at(0.3, 0.6, 0.9)
    first, second = ClassifierFree(4.0, classes=2), DynamicClipping(1.0, limit=0.1)
    found = Chain((first, second))(DENOISE)(z, t, LABEL)
    expected = second(first(DENOISE))(z, t, LABEL)
    assert torch.equal(found.x0, expected.x0)
    assert not torch.equal(found.x0, first(second(DENOISE))(z, t, LABEL).x0)
    with pytest.raises(ValueError, match="at least one term"):
        Chain(())


def test_dynamic_clipping_by_hand():
    z = torch.linspace(-2, 2, 20, dtype=torch.float64).reshape(2, 1, 1, 1, 10)
    t, condition = at(0.4, 0.4), Condition(label=torch.tensor([0, 1]))
    plain = DENOISE(z, t, condition)
    found = DynamicClipping(0.8, limit=0.3)(DENOISE)(z, t, condition)
    for i in range(2):
        x0 = plain.x0[i].flatten()
        s = max(0.3, float(x0.abs().sort().values[7]))  # the 8th of 10
        expected = x0.clamp(-s, s) * 0.3 / s
        torch.testing.assert_close(found.x0[i].flatten(), expected, rtol=0, atol=1e-12)
    assert float(found.x0.abs().max()) <= 0.3 + 1e-12
    # within the limit it is the identity
    assert DynamicClipping(0.5, limit=50.0)(DENOISE)(z, t, condition).x0 is not None
    assert torch.equal(DynamicClipping(0.5, limit=50.0)(DENOISE)(z, t, condition).x0, plain.x0)
    with pytest.raises(ValueError, match=r"quantile in \(0, 1\]"):
        DynamicClipping(0.0)


def test_classes_reach_every_term():
    nested = Sum((Chain((ClassifierFree(2.0, classes=1), DynamicClipping())), DynamicClipping()))
    assert nested.needs_classes
    assert not DynamicClipping().needs_classes
    told = with_classes(nested, 4)
    assert told.terms[0].terms[0].classes == 4
    assert told.terms[1] == DynamicClipping()
    with pytest.raises(ValueError, match="other: expected one of the 2 classes, got 3"):
        with_classes(Chain((FiniteDifference(other=3, classes=1),)), 2)


def test_an_exact_classifier_of_scale_one_is_the_bayes_rule():
    z, t = state_like(0.3, -0.2, 1.5), at(0.3, 0.6, 0.9)
    for target in (0, 1):
        wanted = DENOISE(z, t, Condition(label=torch.full((3,), target)))
        guided = ClassifierGuidance(1.0, target, classifier=EXACT)(DENOISE)
        with torch.no_grad():
            found = guided(z, t, NULL)
        for name in ("x0", "eps", "v"):
            a, b = getattr(found, name), getattr(wanted, name)
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        assert not found.x0.requires_grad


def test_the_gradient_of_a_classifier_is_that_of_the_log_odds():
    z, t = state_like(0.3, -0.2, 1.5), at(0.3, 0.6, 0.9)
    alpha, sigma = SCHEDULE(t)
    slope = alpha * (MEANS[0] - MEANS[1]) / (alpha**2 * STD**2 + sigma**2)
    expected = log_posterior(z, t)[:, 1].exp() * slope
    found = EXACT.gradient(z, t, label=0)
    torch.testing.assert_close(found.flatten(), expected, rtol=0, atol=1e-12)
    half = EXACT.gradient(z.bfloat16(), t, label=0)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), found, rtol=0.02, atol=0.02)


def test_scale_zero_and_states_without_a_volume_are_left_alone():
    z, t = state_like(0.3, -0.2, 1.5), at(0.3, 0.6, 1.0)
    assert ClassifierGuidance(0.0, classifier=EXACT)(DENOISE) is DENOISE
    plain = DENOISE(z, t, NULL)
    found = ClassifierGuidance(100.0, classifier=EXACT)(DENOISE)(z, t, NULL)
    assert torch.equal(found.x0[2], plain.x0[2]), "at alpha = 0 nothing is known of the class"
    assert bool((found.x0[:2] != plain.x0[:2]).all())


def test_guidance_to_healthy_lowers_the_probability_of_disease_along_the_chain():
    z = state_like(*torch.linspace(-1.5, 1.5, 33).tolist())
    null = Condition(label=torch.full((33,), 2))
    sampler, kernel = DDIM(40), Gaussian(SCHEDULE)
    sick, ends = [], []
    for scale in (0.0, 1.0, 4.0):
        seen = []

        def watch(ctx, seen=seen):
            seen.append(float(log_posterior(ctx.z_t, ctx.t)[:, 1].exp().mean()))
            return ctx.prediction.x0, ctx.z_t

        denoise = ClassifierGuidance(scale, classifier=EXACT)(DENOISE)
        times = sampler.times(SCHEDULE)
        end = sampler.sample(denoise, kernel, z, times, condition=null, on_x0=watch)
        ends.append(float(end.mean()))
        sick.append(seen)
    assert sick[0][-1] == pytest.approx(0.5, abs=0.02)
    assert sick[1][-1] < 0.2
    assert sick[2][-1] < sick[1][-1]
    for earlier, later in zip(sick[2][5:], sick[2][6:], strict=False):
        assert later <= earlier + 1e-9
    assert ends[1] == pytest.approx(MEANS[0], abs=0.05)
    assert ends[2] < ends[1]


def test_classifiers_reach_every_term_and_are_missed():
    nested = Chain((Sum((ClassifierGuidance(2.0, classifier=None), DynamicClipping())),))
    (request,) = nested.requests()
    assert (request.loan.kind, request.place) == ("classifier", "terms[0].terms[0]")
    assert request.value is None
    assert Chain((DynamicClipping(),)).requests() == ()
    told = nested.bind(lambda request: EXACT)
    assert told.terms[0].terms[0].classifier is EXACT
    assert told.requests()[0].value is EXACT
    assert nested.bind(lambda request: None) is nested
    assert "digest='exact'" in repr(told), "what belongs to a classifier says to which"
    z, t = state_like(0.3, -0.2, 1.5), at(0.3, 0.6, 0.9)
    alone = ClassifierGuidance(2.0, classifier=EXACT)(DENOISE)(z, t, NULL)
    clipped = DynamicClipping(0.99, limit=0.1)
    found = Chain((ClassifierGuidance(2.0, classifier=EXACT), clipped))(DENOISE)(z, t, NULL)
    assert float(found.x0.abs().max()) <= 0.1 + 1e-12
    assert float(alone.x0.abs().max()) > 0.1
    with pytest.raises(ValueError, match="expected a trained classifier, got none"):
        nested(DENOISE)
    with pytest.raises(ValueError, match="target: expected one of the 2 classes, got 2"):
        ClassifierGuidance(target=2, classifier=EXACT)
    with pytest.raises(ValueError, match="expected scale >= 0"):
        ClassifierGuidance(-1.0, classifier=None)
