"""Which parts fit: tables of all combinations, subclasses, silent parts, a new kernel.

The tables were recorded before there was one place that decides, when four rules did: names of
classes, their identity, ancestry and kind. The one deliberate change is marked.
"""

import sys
from dataclasses import replace
from types import new_class

import pytest
import torch
from anomaly_models import SPACES, States, tiny_binary
from lesion_masks import MASKS
from tiny_runs import tiny, write_data

from volumediff.anomaly.methods.localizer import Localizer
from volumediff.calibration.of_run import load_method
from volumediff.codings.signed import Signed
from volumediff.compatibility import chains, methods, training
from volumediff.config import available, build, component
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.noise import GaussianNoise as White
from volumediff.runs.trained import load_trained
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.latent import Latent
from volumediff.spaces.voxel import Voxel
from volumediff.times.grid import GridTimes
from volumediff.times.uniform import Uniform
from volumediff.training.loop import train

SCHEDULE = Cosine(zero_terminal_snr=True)
SPEC = {"name": "cosine", "zero_terminal_snr": True}
KERNELS = {
    "gaussian": build("kernel", {"name": "gaussian", "schedule": SPEC}),
    "cold": build("kernel", {"name": "cold", "schedule": SPEC}),
    "discrete": build("kernel", {"name": "discrete", "schedule": SPEC}),
    "discrete3": build("kernel", {"name": "discrete", "schedule": SPEC, "classes": 3}),
}
# of label models alone: the tables of localization leave it out
EVERY_KERNEL = KERNELS | {
    name: build("kernel", {"name": name, "schedule": SPEC}) for name in ("edm", "rigid")
}
# Parts that every method takes alike: the network is shown another input; what surrounds a void is
# shown in another way; a modality says nothing about health.
ALIKE = {"edm": "gaussian", "voided": "inpainting", "modality_conditional": "healthy"}
ARGUMENTS = {
    "class_conditional": {"attribute": "group", "values": ["control", "patient"]},
    "modality_conditional": {"values": ["t1", "t2"]},
    "mixture": {"of": ["coarse"]},
    "pasted": {"masks": str(MASKS)},
}


def named(family, name, **arguments):
    return build(family, {"name": name, **ARGUMENTS.get(name, {}), **arguments})


RECIPES = {name: named("recipe", name) for name in available("recipe")}
NOISES = {name: named("noise", name) for name in available("noise")}
CORRUPTIONS = {name: named("corruption", name) for name in available("corruption")}
SAMPLERS = {
    "none": None,
    **{name: named("sampler", name, steps=2) for name in ("ddim", "heun", "dpmpp", "plms")},
    "ddim_eta": named("sampler", "ddim", steps=2, eta=0.5),
    "ancestral": named("sampler", "ancestral", steps=2),
    "ancestral_half": named("sampler", "ancestral", steps=2, variance=0.5),
}


def table(text, columns, groups=("",)):
    """row -> group -> column -> whether it is a plus."""
    rows = {}
    for line in text.strip().splitlines():
        name, *marks = line.split()
        assert [len(m) for m in marks] == [len(columns)] * len(groups), line
        cells = zip(groups, marks, strict=True)
        rows[name] = {g: dict(zip(columns, m, strict=True)) for g, m in cells}
    return {
        (row, group, column): mark == "+"
        for row, by_group in rows.items()
        for group, cells in by_group.items()
        for column, mark in cells.items()
    }


@pytest.fixture(scope="module")
def spaces():
    made = {name: make() for name, make in SPACES.items()}
    return {**made, "bits": Latent(tiny_binary())}


def heir(part):
    """The same part as an object of a subclass that adds nothing, by a name of its own."""
    if part is None:
        return None
    cls = new_class("Foreign", (type(part),))
    copy = object.__new__(cls)
    copy.__dict__.update(part.__dict__)
    return copy


SAME = pytest.mark.parametrize("via", [lambda part: part, heir], ids=["shipped", "subclass"])

TRAINED = """
healthy/gaussian              ++++ ++++ ++++ +--- +---
healthy/cold                  ---- ---- ---- ---- ----
healthy/discrete              ---- ---- ---- ---- +---
healthy/discrete3             ---- ---- ---- ---- ----
class_conditional/gaussian    ++++ ++++ ++++ +--- +---
class_conditional/cold        ---- ---- ---- ---- ----
class_conditional/discrete    ---- ---- ---- ---- +---
class_conditional/discrete3   ---- ---- ---- ---- ----
modality_conditional/gaussian  ++++ ++++ ++++ +--- +---
modality_conditional/cold      ---- ---- ---- ---- ----
modality_conditional/discrete  ---- ---- ---- ---- +---
modality_conditional/discrete3 ---- ---- ---- ---- ----
label_diffusion/gaussian      ++++ ++++ ++++ +--- +---
label_diffusion/cold          ---- ---- ---- ---- ----
label_diffusion/discrete      ++++ ++++ ++++ ---- +---
label_diffusion/discrete3     ---- ---- ---- ---- ----
label_maps/gaussian           ++++ ++++ ++++ +--- +---
label_maps/cold               ---- ---- ---- ---- ----
label_maps/discrete           ---- ---- ---- ---- ----
label_maps/discrete3          ---- ---- ---- ---- ----
synthetic_anomalies/gaussian  ++++ ++++ ++++ ---- ----
synthetic_anomalies/cold      ---- ---- ---- ---- ----
synthetic_anomalies/discrete  ---- ---- ---- ---- ----
synthetic_anomalies/discrete3 ---- ---- ---- ---- ----
degradation/gaussian          ---- ---- ---- ---- ----
degradation/cold              ++++ ++++ ++++ +--- +---
degradation/discrete          ---- ---- ---- ---- ----
degradation/discrete3         ---- ---- ---- ---- ----
local_noise/gaussian          ++++ ++++ ++++ +--- +---
local_noise/cold              ---- ---- ---- ---- ----
local_noise/discrete          ---- ---- ---- ---- ----
local_noise/discrete3         ---- ---- ---- ---- ----
inpainting/gaussian           ++++ ++++ ++++ +--- +---
inpainting/cold               ---- ---- ---- ---- ----
inpainting/discrete           ---- ---- ---- ---- ----
inpainting/discrete3          ---- ---- ---- ---- ----
voided/gaussian               ++++ ++++ ++++ +--- +---
voided/cold                   ---- ---- ---- ---- ----
voided/discrete               ---- ---- ---- ---- ----
voided/discrete3              ---- ---- ---- ---- ----
pseudo_healthy/gaussian       ++++ ++++ ++++ +--- +---
pseudo_healthy/cold           ---- ---- ---- ---- ----
pseudo_healthy/discrete       ---- ---- ---- ---- ----
pseudo_healthy/discrete3      ---- ---- ---- ---- ----
translation/gaussian          ++++ ++++ ++++ +--- +---
translation/cold              ---- ---- ---- ---- ----
translation/discrete          ---- ---- ---- ---- ----
translation/discrete3         ---- ---- ---- ---- ----
modality_cycle/gaussian       ++++ ++++ ++++ +--- +---
modality_cycle/cold           ---- ---- ---- ---- ----
modality_cycle/discrete       ---- ---- ---- ---- ----
modality_cycle/discrete3      ---- ---- ---- ---- ----
"""


@SAME
def test_what_can_be_trained(spaces, via):
    columns = ("gaussian", "coarse", "pyramid", "simplex")
    expected = table(TRAINED, columns, ("voxel", "wavelet", "slices", "latent", "bits"))
    assert {row.partition("/")[0] for row, _, _ in expected} == set(RECIPES)
    for (row, space, noise), fits in expected.items():
        recipe, _, kernel = row.partition("/")
        problem = training.training_problem(
            via(RECIPES[recipe]), spaces[space], via(KERNELS[kernel]), via(NOISES[noise])
        )
        assert (problem is None) == fits, (row, space, noise, problem)


def model(*, kernel=KERNELS["gaussian"], recipe=None, noise=None, space=None, times=None):
    return Model(
        space or Voxel(),
        kernel,
        States(),
        recipe=recipe or RECIPES["healthy"],
        noise_field=noise or White(),
        time_density=times or Uniform(),
    )


CODED = """
signed/discrete    +++-+
signed/discrete3   -----
signed/rigid       +++--
absent_0/discrete  ----+
absent_0/rigid     +++--
one_hot/discrete   ----+
one_hot/discrete3  +++--
one_hot/rigid      +++--
regions/discrete   +++-+
regions/discrete3  -----
regions/rigid      +++--
distance/discrete  ----+
distance/rigid     +++--
"""


@SAME
def test_codes_that_a_kernel_can_change(spaces, via):
    codings = {"absent_0": {"name": "signed", "absent": 0.0}}
    columns = ("voxel", "wavelet", "slices", "latent", "bits")
    for (row, _, space), fits in table(CODED, columns).items():
        coding, _, kernel = row.partition("/")
        recipe = named(
            "recipe", "label_diffusion", labels=[1, 2], coding=codings.get(coding, coding)
        )
        problem = training.training_problem(
            via(recipe), spaces[space], via(EVERY_KERNEL[kernel]), White()
        )
        assert (problem is None) == fits, (row, space, problem)
        assert problem is None or "\n" not in problem


ALL = (
    *("healthy", "class_conditional", "label_diffusion", "synthetic_anomalies"),
    *("degradation", "local_noise", "inpainting", "modality_cycle", "translation"),
    "modality_conditional",
)
ASKED = """
any                 ++-------+
healthy             +--------+
class_conditional   -+--------
label_diffusion     --+-------
synthetic_anomalies ---+------
degradation         ----+-----
local_noise         -----+----
inpainting          ------+---
modality_cycle      -------+--
translation         --------+-
"""
WALKED = """
gaussian +---
cold     -+--
discrete --++
"""
HEARD = """
coarse   +- -- -- --
gaussian -- ++ -- --
pyramid  -- -- +- --
simplex  -- -- -- +-
"""


@SAME
def test_what_a_method_asks_of_a_checkpoint(spaces, via):
    for (wanted, _, got), fits in table(ASKED, ALL).items():
        recipe = None if wanted == "any" else component("recipe", wanted)
        problem = methods.recipe_problem(model(recipe=via(RECIPES[got])), recipe)
        assert (problem is None) == fits, (wanted, got, problem)
    for (wanted, _, got), fits in table(WALKED, tuple(KERNELS)).items():
        found = model(kernel=via(KERNELS[got]))
        problem = methods.kernel_problem(found, component("kernel", wanted))
        assert (problem is None) == fits, (wanted, got, problem)
    names = ("coarse", "gaussian", "pyramid", "simplex")
    for (wanted, got, space), fits in table(HEARD, ("voxel", "latent"), names).items():
        found = model(noise=via(NOISES[got]), space=spaces[space])
        problem = methods.noise_problem(found, component("noise", wanted))
        assert (problem is None) == fits, (wanted, got, space, problem)
    changed = RECIPES["degradation"]
    for got in (None, *CORRUPTIONS):
        recipe = replace(changed, corruption=via(CORRUPTIONS[got])) if got else RECIPES["healthy"]
        for wanted in (None, *CORRUPTIONS):
            kind = None if wanted is None else component("corruption", wanted)
            problem = methods.corruption_problem(model(recipe=recipe), kind)
            assert (problem is None) == (wanted in (None, got)), (wanted, got, problem)


STEPPED = """
ddim           +--
ddim_eta       +--
heun           +--
dpmpp          +--
plms           +--
ancestral      +++
ancestral_half +--
"""


@SAME
def test_which_kernels_a_sampler_walks(via):
    for (sampler, _, kernel), fits in table(STEPPED, ("gaussian", "cold", "discrete")).items():
        mine = via(SAMPLERS[sampler])
        for what in (via(KERNELS[kernel]), type(via(KERNELS[kernel]))):
            problem = chains.sampler_problem(mine, what)
            assert (problem is None) == fits, (sampler, kernel, problem)


# Until now a route that inverts took the stochastic DDIM and failed at its first step.
ROUTED = """
conditional +-- +-- +-- +-- +-- +-- +-- +--
cycle     --- +-- +-- +-- +-- +-- +-- +--
diffuse   --- +-- +-- +-- +-- +-- +-+ +--
external  +-- --- --- --- --- --- --- ---
flow_scan --- +-- --- +-- --- --- --- ---
fuse      --- +-- --- +-- --- --- --- ---
grid      --- +-- +-- +-- +-- +-- +-- +--
identity  +++ --- --- --- --- --- --- ---
inversion --- +-- --- +-- --- --- --- ---
kl        +-- --- --- --- --- --- --- ---
masks     --- +-- +-- +-- +-- +-- +-- +--
restore   -+- --- --- --- --- --- -+- ---
saliency  +-- --- --- --- --- --- --- ---
scan      +-- --- --- --- --- --- --- ---
selective +-- --- --- --- --- --- --- ---
shrink    --- +-- +-- +-- +-- +-- +-- +--
"""


def routes():
    made = {}
    for name in available("route"):
        fields = component("route", name).__dataclass_fields__
        levels = {"levels": {"levels": [0.3, 0.5]}, "level": {"level": 0.5}}
        spec = next((value for key, value in levels.items() if key in fields), {})
        given = {"classifier": None} if "classifier" in fields else {}
        made[name] = build("route", {"name": name, **spec}, **given)
    return made


def accepted(**slots):
    try:
        Localizer(**slots)
    except ValueError:
        return False
    return True


@SAME
def test_which_routes_samplers_and_kernels_go_together(via):
    order = ("none", "ddim", "ddim_eta", "heun", "dpmpp", "plms", "ancestral", "ancestral_half")
    expected = table(ROUTED, ("gaussian", "cold", "discrete"), order)
    made = routes()
    assert {row for row, _, _ in expected} == set(made)
    first = Localizer(route=made["scan"])
    for (route, sampler, kernel), fits in expected.items():
        slots = {"sampler": via(SAMPLERS[sampler]), "kernel": type(via(KERNELS[kernel]))}
        if made[route].two_pass:
            slots["first"] = first
        assert accepted(route=via(made[route]), **slots) == fits, (route, sampler, kernel)


EDITED = """
flip      -- -- +- +-
harmonise ++ -- -- --
inpaint   ++ ++ ++ ++
plain     ++ ++ ++ ++
resample  ++ ++ ++ ++
stitch    ++ ++ ++ ++
"""


@SAME
def test_which_kernels_a_strategy_edits(spaces, via):
    given = {"harmonise": {"levels": [0.2]}}
    for (name, kernel, space), fits in table(EDITED, ("bits", "voxel"), tuple(KERNELS)).items():
        editing = via(named("editing", name, **given.get(name, {})))
        found = model(kernel=via(KERNELS[kernel]), space=spaces[space])
        problems = [problem for need in editing.requirements() if (problem := said(need, found))]
        assert (not problems) == fits, (name, kernel, space, problems)


def said(need, found):
    """Why a model does not meet a requirement; nothing where it does."""
    try:
        need.check(found)
    except ValueError as error:
        return str(error)
    return ""


def test_runs_that_others_learn_from():
    learn = {name for name, r in RECIPES.items() if not training.supervision_problem(r)}
    assert learn == {"synthetic_anomalies", "label_diffusion"}
    assert training.supervision_problem(named("recipe", "label_diffusion", coding=Signed(0.0)))
    given = {name for name, r in RECIPES.items() if not training.states_problem(r)}
    assert given == {"healthy", "class_conditional", "modality_conditional"}
    compared = {
        (recipe, kernel)
        for recipe, r in RECIPES.items()
        for kernel, k in KERNELS.items()
        if not training.comparison_problem(model(recipe=heir(r), kernel=heir(k)))
    }
    assert compared == {
        ("healthy", "gaussian"),
        ("class_conditional", "gaussian"),
        ("modality_conditional", "gaussian"),
    }
    classes = RECIPES["class_conditional"]
    good = replace(classes, drop=0.0)
    assert training.classification_problem(good) is None
    for bad in (
        RECIPES["healthy"],
        classes,
        replace(RECIPES["modality_conditional"], drop=0.0),
        replace(good, atlas=True),
        replace(good, scalars=("age",)),
    ):
        assert "classes without drop, atlas and scalars" in training.classification_problem(bad)


def test_what_is_modelled():
    rule = methods.fills_voids
    assert {name for name, r in RECIPES.items() if rule(heir(r))} == {"inpainting", "voided"}
    rule = methods.translates
    assert {name for name, r in RECIPES.items() if rule(heir(r))} == {"translation"}
    assert {name for name, k in KERNELS.items() if methods.restores(heir(k))} == {"cold"}


def test_times_that_were_trained():
    whole, low, late = (model(times=t) for t in (Uniform(), Uniform(0.0, 0.4), Uniform(0.4, 1.0)))
    steps = model(times=GridTimes(4, high=0.5))
    asked = methods.times_problem
    assert asked(whole, [1.0], chain=True) is None
    assert "up to 0.400" in asked(low, [0.2, 0.5], chain=False)
    assert asked(low, [0.4 + 1e-12], chain=True) is None
    assert "above 0.400" in asked(late, [0.5], chain=True)
    assert "got 0.400" in asked(late, [0.4, 0.6], chain=False)
    assert asked(late, [0.5], chain=False) is None
    assert "up to 0.500" in asked(steps, [0.6], chain=True)
    ends = [methods.end_problem(m) is None for m in (whole, low, late, steps)]
    assert ends == [True, False, True, False]
    everything = [methods.samples_everything(m) for m in (whole, low, late, steps)]
    assert everything == [True, False, False, False]
    told = replace(RECIPES["healthy"], reference=True)
    assert not methods.samples_everything(model(recipe=told))
    assert not methods.samples_everything(model(recipe=RECIPES["local_noise"]))


def test_other_needs():
    told = model(recipe=replace(RECIPES["healthy"], reference=True))
    assert methods.reference_problem(told, True) is None
    assert methods.reference_problem(model(), False) is None
    assert "recipe.reference=true" in methods.reference_problem(model(), True)
    assert "got none" in methods.diffusion_problem(None)
    assert methods.diffusion_problem(model()) is None
    assert "of the autoencoder binary" in methods.diffusion_problem(tiny_binary())
    strong = build("guidance", {"name": "classifier_free", "weight": 2.0}, classes=2)
    clip = build("guidance", "dynamic_clipping")
    nested = build("guidance", "chain", terms=(clip, strong))
    assert "without classes" in methods.guidance_problem(model(), nested)
    assert methods.guidance_problem(model(), clip) is None
    assert methods.guidance_problem(model(), None) is None


def test_what_declares_nothing_fits_nowhere(spaces):
    silent = {
        "kernel": new_class("Silent", (Gaussian,), exec_body=lambda n: n.update(path="")),
        "noise": new_class("Silent", (White,), exec_body=lambda n: n.update(kind="")),
        "recipe": new_class(
            "Silent", (type(RECIPES["inpainting"]),), exec_body=lambda n: n.update(teaches="")
        ),
    }
    kernel, noise, recipe = silent["kernel"](SCHEDULE), silent["noise"](), silent["recipe"]()
    problem = training.training_problem(RECIPES["healthy"], Voxel(), kernel, White())
    assert "silent, whose class declares no path" in problem
    assert methods.kernel_problem(model(kernel=kernel), silent["kernel"])
    assert chains.sampler_problem(SAMPLERS["ddim"], kernel)
    assert methods.noise_problem(model(noise=noise), silent["noise"])
    assert methods.recipe_problem(model(recipe=recipe), silent["recipe"])


def test_a_sampler_needs_what_it_reads():
    class Blind(Gaussian):
        predicts = ("x0",)

    kernel = Blind(SCHEDULE)
    fits = {n for n, s in SAMPLERS.items() if s and not chains.sampler_problem(s, kernel)}
    assert fits == {"dpmpp", "ancestral", "ancestral_half"}
    reason = chains.sampler_problem(SAMPLERS["heun"], kernel)
    assert reason.endswith("got blind, which does not predict eps; use ancestral.")


@pytest.mark.parametrize(
    ("family", "word", "parts"),
    [
        ("kernel", "path", {n: k for n, k in EVERY_KERNEL.items() if n != "discrete3"}),
        ("recipe", "teaches", RECIPES),
        ("noise", "kind", NOISES),
        ("corruption", "kind", CORRUPTIONS),
    ],
)
def test_every_part_says_what_it_is(family, word, parts):
    assert set(parts) == set(available(family))
    said = {name: getattr(part, word) for name, part in parts.items()}
    assert all(said.values())
    assert all(said[a] == said[b] for a, b in ALIKE.items() if a in said)
    own = [of for name, of in said.items() if name not in ALIKE]
    assert len(set(own)) == len(own), "two parts that are not alike"
    paths = {k.path for k in EVERY_KERNEL.values()}
    assert {p for r in RECIPES.values() for p in r.paths} == paths


FLOW = '''
"""A rectified flow: straight lines, and the network gives their velocity."""

from dataclasses import dataclass

from volumediff.kernels.gaussian import Gaussian, Quantity
from volumediff.schedules._base import Schedule

__all__ = ["Flow"]


class Straight(Schedule):
    zero_terminal_snr = True

    def __call__(self, t):
        return 1 - t.double(), t.double()


@dataclass(frozen=True)
class Flow(Gaussian):
    schedule: Schedule = Straight()
    prediction: Quantity = "u"
'''


def test_a_new_kernel_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "foreign_flow.py").write_text(FLOW.lstrip())
    assert len(FLOW.strip().splitlines()) <= 22
    monkeypatch.syspath_prepend(str(tmp_path))
    root = write_data(tmp_path / "data")
    words = ("times=logit_normal", "validation.previews=1", "validation.preview_steps=2")
    try:
        run = train(tiny(root, tmp_path / "run", "kernel={name: foreign_flow:Flow}", *words))
        trained = load_trained(run, which="last", device="cpu")
        assert type(trained.model.kernel).__name__ == "Flow"
        assert list((run / "previews").glob("*.png"))
        example = next(trained.examples("validation"))
        for row in ("ddpm", "thor", "ddim_inversion"):
            method = load_method(trained, row, overrides=["sampler.steps=2"])
            found = method.find(trained.model, example, key=0)
            assert bool(torch.isfinite(found.map).all()), row
            assert float(found.map.max()) > 0, row
    finally:
        sys.modules.pop("foreign_flow", None)
