"""What components say of themselves: identity, parts, needs, and what they borrow."""

from dataclasses import dataclass, field, fields, is_dataclass, replace

import pytest
import torch
from anomaly_models import posterior, states

from volumediff.anomaly import method_files
from volumediff.anomaly.baselines import Smoothing
from volumediff.anomaly.maps._base import Map
from volumediff.anomaly.maps.l1 import L1
from volumediff.anomaly.maps.ssim import SSIM
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Method
from volumediff.anomaly.needs.training import TrainedOn, WithKernel
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.anomaly.threshold import Fixed, HealthyFPR
from volumediff.component import Component, Loan, Requirement, borrowed, identity_of, presentation
from volumediff.config import build, shipped
from volumediff.documentation.method_matrix import needs_of
from volumediff.errors import UsageError
from volumediff.kernels.cold import Cold
from volumediff.recipes.inpainting import Inpainting

METHODS = shipped("anomaly")
LOAN = Loan("judge", what="a judge", configurations="classifiers")


@dataclass(frozen=True)
class Old(Component):
    """As it was released."""

    width: float = 2.0
    inner: Component | None = None


Old.__module__ = "volumediff.anomaly.maps.blurred"


def later(**more):
    """The same class, with fields that came later."""

    @dataclass(frozen=True)
    class Old(Component):
        width: float = 2.0
        inner: Component | None = None
        gain: float = 1.0
        around: Component = field(default_factory=lambda: SSIM(sigma_mm=2.0))

    Old.__module__ = "volumediff.anomaly.maps.blurred"
    for name, value in more.items():
        setattr(Old, name, value)
    return Old


def test_identity_is_class_and_what_is_not_the_default():
    assert Old().identity() == {"name": "Old"}
    assert Old(3.0).identity() == {"name": "Old", "width": 3}
    assert Old(2.0, Old(2.5)).identity() == {"name": "Old", "inner": {"name": "Old", "width": 2.5}}


def test_a_field_that_comes_later_changes_no_identity():
    new = later()
    assert new(3.0).identity() == Old(3.0).identity()
    assert new(3.0, new()).identity() == Old(3.0, Old()).identity()
    assert new(gain=2.0).identity() != Old().identity()
    assert new(around=SSIM(sigma_mm=1.0)).identity() == {
        "name": "Old",
        "around": {"name": "SSIM", "sigma_mm": 1},
    }
    assert new(around=SSIM(sigma_mm=2.0)).identity() == {"name": "Old"}, "equal, not identical"


def test_a_revision_changes_the_identity_of_the_same_arguments():
    assert later(revision=2)().identity() == {"name": "Old", "revision": 2}


def test_classes_of_others_are_named_with_their_module():
    @dataclass(frozen=True)
    class L1(Component):
        """Of another package."""

    assert L1().identity()["name"].startswith("test_component:")
    assert L1().identity()["name"].endswith("L1")


def test_what_has_no_identity_is_refused():
    with pytest.raises(TypeError, match="got a Tensor; define identity"):
        identity_of(torch.zeros(3))


def leaves(value, rebuild):
    """Place, value and constructor of the whole, for every argument of a method."""
    for f in fields(value):
        if not f.init or "loan" in f.metadata:
            continue
        own = getattr(value, f.name)

        def outer(new, f=f):
            return rebuild(replace(value, **{f.name: new}))

        free = "presentation" in f.metadata
        if is_dataclass(own) and not isinstance(own, type) and not free:
            yield from ((f"{f.name}.{n}", *rest) for n, *rest in leaves(own, outer))
        elif isinstance(own, tuple) and own and is_dataclass(own[0]):
            for i, each in enumerate(own):

                def at(new, i=i, own=own, outer=outer):
                    return outer((*own[:i], new, *own[i + 1 :]))

                yield from ((f"{f.name}[{i}].{n}", *rest) for n, *rest in leaves(each, at))
        else:
            yield f.name, own, free, outer


def others(value):
    """Values that an argument of such a value may have instead."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, -value]
    if isinstance(value, float):
        return [0.75 * value + 0.013, 0.5 * value + 1e-3, 2 * value + 0.1]
    if isinstance(value, tuple):
        return [(*value[:-1], v) for v in others(value[-1])] if value else []
    return []


@pytest.mark.parametrize("name", METHODS)
def test_every_number_of_a_method_is_in_its_identity(name):
    method = method_files.read_method(name)
    changed = 0
    for place, value, free, rebuild in leaves(method, lambda new: new):
        for other in others(value):
            try:
                made = rebuild(other)
            except (ValueError, TypeError):
                continue  # out of its range
            same = made.fingerprint == method.fingerprint
            assert same == free, f"{place}: {value} -> {other}"
            changed += not free
            break
    assert changed > 0 or name == "prevalence"


@pytest.mark.parametrize("name", METHODS)
def test_what_only_readers_see_is_in_no_identity(name):
    method = method_files.read_method(name)
    for change in (
        {"threshold": Fixed(1.0)},
        {"threshold": HealthyFPR(rate=0.123)},
        {"scope": "something else"},
    ):
        assert replace(method, **change).fingerprint == method.fingerprint
    assert replace(method, supervision="full").fingerprint == method.fingerprint


def test_no_two_methods_have_one_identity():
    found = {}
    for name in METHODS:
        found.setdefault(method_files.read_method(name).fingerprint, []).append(name)
    shared = [names for names in found.values() if len(names) > 1]
    # they learn from other volumes, so that what they learnt tells them apart
    assert shared == [["diffusion_features", "diffusion_features_synthetic"]]


@dataclass(frozen=True)
class Digest:
    """A model of another run."""

    digest: str


@dataclass(frozen=True)
class Judged(Component):
    """Works with a model of another run."""

    run: str | None = presentation(None)
    judge: Digest | None = borrowed(LOAN)


@dataclass(frozen=True)
class Pair(Component):
    """Two of them, and a third deeper."""

    first: Component
    others: tuple[Component, ...]


def test_borrowed_models_reach_every_part_that_declares_one():
    both = Pair(Judged("a"), (Old(), Pair(Judged(), (Judged("c"),))))
    places = {"first": "a", "others[1].first": None, "others[1].others[0]": "c"}
    assert {r.place: r.run for r in both.requests()} == places
    assert [r.name for r in both.requests()] == [f"{place}.run" for place in places]
    bound = both.bind(lambda request: Digest(request.run) if request.run else None)
    assert [r.value for r in bound.requests()] == [Digest("a"), None, Digest("c")]
    assert bound.others[0] is both.others[0]
    assert both.bind(lambda request: None) is both
    assert [r.value for r in both.requests()] == [None] * 3


def test_identity_has_the_weights_of_what_is_borrowed_and_not_its_folder():
    def with_digest(digest, run):
        return Pair(Judged(run), ()).bind(lambda request: Digest(digest)).identity()

    assert with_digest("x", "here") == with_digest("x", "there")
    assert with_digest("x", "here") != with_digest("y", "here")
    assert with_digest("x", "here")["first"] == {
        "name": Judged().identity()["name"],
        "judge": "x",
    }


@dataclass(frozen=True)
class Big(Requirement):
    """A large model."""

    size: int

    def check(self, model):
        """The model is a number here."""
        if model < self.size:
            raise ValueError(f"expected {self.size}, got {model}.")


@dataclass(frozen=True)
class Needy(Component):
    """Needs a large model, as its part does."""

    size: int
    part: Component | None = None

    @property
    def needs(self):
        """One number."""
        return (Big(self.size),)


@dataclass(frozen=True)
class Alone(Needy):
    """Its part works with another model."""

    alone = True


def test_needs_are_merged_and_each_is_there_once():
    assert Needy(1, Needy(2, Needy(1))).requirements() == (Big(1), Big(2))
    assert Alone(1, Needy(2)).requirements() == (Big(1),)
    assert Needy(3, Alone(1, Needy(2))).requirements() == (Big(3), Big(1))


def test_requirements_are_the_words_that_train_for_them():
    assert TrainedOn(Inpainting).words == ("recipe=inpainting",)
    assert TrainedOn().words == ()
    assert WithKernel(Cold).words == ("kernel=cold",)
    assert WithKernel().words == ()


CONDITIONAL = ["recipe=class_conditional"]
DETECTED = "recipe=synthetic_anomalies"
RESTORED = ["recipe=degradation", "kernel=cold"]
NEEDS = {
    "andi": ["noise=pyramid"],
    "anoddpm": ["noise=simplex"],
    "anofpdm": CONDITIONAL,
    "bernoulli": ["kernel=discrete", "space.autoencoder=binary"],
    "cddpm": ["recipe.reference=true", "noise=simplex"],
    "cevae": ["context_vae_64"],
    "cfg_inversion": CONDITIONAL,
    "class_contrast": CONDITIONAL,
    "dae": ["dae_64"],
    "dae_diffusion": [*RESTORED, "recipe.corruption=coarse"],
    "ddib": CONDITIONAL,
    "dif_fuse": ["--classifier"],
    "diff_scm": CONDITIONAL,
    "fluid_ddpm": ["recipe=pseudo_healthy", "recipe.corruption=fluid"],
    "synthstroke": ["recipe=synthetic_anomalies", "recipe.corruption=pasted"],
    "una": ["recipe=pseudo_healthy", "recipe.corruption=fluid"],
    "disyre": [*RESTORED, "recipe.corruption=foreign_patch"],
    "disyre_v2": [*RESTORED, "recipe.corruption=disentangled"],
    "draem": [DETECTED, "recipe.corruption=texture_patch"],
    "fanogan": ["fanogan_64"],
    "fpi": [DETECTED, "recipe.corruption=foreign_patch"],
    "healthy_inpainting": ["recipe=inpainting"],
    "hu": CONDITIONAL,
    "itermask3d": ["recipe=inpainting"],
    "ltm": ["token_prior_64"],
    "mad_ad": ["recipe=local_noise", "recipe.mask_loss=0.1"],
    "mae": ["recipe=inpainting"],
    "mmccd": ["recipe=modality_cycle"],
    "nsa": [DETECTED, "recipe.corruption=natural_patch"],
    "pddpm": ["recipe=local_noise"],
    "phanes": ["first.run=soft_intro_vae_64"],
    "pii": [DETECTED, "recipe.corruption=poisson_patch"],
    "pii_diffusion": [*RESTORED, "recipe.corruption=poisson_patch"],
    "ra": ["soft_intro_vae_64"],
    "sadm": ["map.run=siamese_64"],
    "saliency": ["--classifier"],
    "synthetic": [DETECTED],
    "vae": ["vae_64"],
    "vae_restoration": ["vae_64"],
    "wolleb": ["--classifier"],
    "wolleb_ddpm": ["--classifier"],
}


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_needs_is_what_its_comments_and_paper_say(name):
    assert needs_of(method_files.read_method(name)) == NEEDS.get(name, [])


def test_a_component_names_its_own_run_before_the_option():
    method = method_files.read_method("wolleb", overrides=["score.run=mine"])
    names = {request.place: request.name for request in method.requests()}
    assert names == {"score": "score.run", "guidance": "classifier"}
    with pytest.raises(ValueError, match=r"score\.run: expected a classifier .*=RUN"):
        method.check(states())
    guided = method.bind(lambda request: posterior() if request.place == "score" else None)
    with pytest.raises(ValueError, match=r"classifier: expected .*give its run as classifier, "):
        guided.check(states())


def test_what_is_handed_in_cannot_be_configured():
    for words in (
        "map={name: posterior, residual_segmenter: x}",
        "score={name: classifier, classifier: x}",
    ):
        with pytest.raises(UsageError, match="is derived, not configured"):
            method_files.read_method("sadm", overrides=[words])
    with pytest.raises(UsageError, match=r"classes: is derived, not configured"):
        build("guidance", {"name": "chain", "terms": [{"name": "classifier_free", "classes": 2}]})


def test_a_map_inside_of_another_borrows_as_well():
    words = ["map={name: product, maps: [l1, {name: posterior, run: there}]}"]
    (request,) = method_files.read_method("sadm", overrides=words).requests()
    assert (request.place, request.run) == ("map.maps[1]", "there")
    assert isinstance(request.component, Map)
    assert L1().requests() == ()


@dataclass(frozen=True, kw_only=True)
class Dark(Method):
    """A kind of method of somebody else: how dark a voxel is, times a distance from zero."""

    gain: float = 2.0
    map: Map = field(default_factory=L1)
    inner: Method | None = None

    def find(self, model, example, *, key):
        """Minus the intensity."""
        return RawLocalization(
            -self.gain * example.x.mean(1, keepdim=True) * example.foreground, None
        )


def test_a_kind_of_method_from_outside_is_named_by_its_class(tmp_path):
    path = tmp_path / "mine.yaml"
    text = "method: test_component:Dark\nmap: {name: ssim, sigma_mm: 3}\n"
    path.write_text(text + "inner: {baseline: {name: smoothing, sigma_mm: 3}}\n")
    method = method_files.read_method(
        str(path), overrides=["gain=4", "threshold={name: fixed, value: 0.5}"]
    )
    assert isinstance(method, Dark)
    assert (method.gain, method.map, type(method.inner)) == (4.0, SSIM(sigma_mm=3.0), Smoothing)
    assert method.identity()["name"] == "test_component:Dark"
    x = torch.full((1, 1, 4, 4, 4), -0.25)
    example = Example(x, torch.ones_like(x) > 0, (1.0, 1.0, 1.0))
    place = {"foreground": example.foreground, "spacing_mm": example.spacing_mm}
    found = method.localize(None, x, **place, key=0)
    torch.testing.assert_close(found.map, torch.ones_like(x))
    assert bool(found.mask.any())
    path.write_text("method: test_component:Dark\ngian: 3\n")
    with pytest.raises(UsageError, match=r"gian: no key of a method; .*Did you mean 'gain'"):
        method_files.read_method(str(path))
    path.write_text("method: volumediff.anomaly.methods.localizer:Localizer\nmap: l1\n")
    with pytest.raises(UsageError, match="Localizer needs route"):
        method_files.read_method(str(path))
