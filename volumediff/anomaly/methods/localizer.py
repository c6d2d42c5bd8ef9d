r"""The localization method of diffusion models: components that turn a volume into a map.

    x ─ route(noise, editing, sampler, guidance) ─▶ x̂_1, x̂_2, … ─ map ─▶ a_1, a_2, …
      ─ ensemble ─▶ a ─ normalize ─ post ─▶ map ─ threshold ─▶ mask,  ─ score ─▶ volume score

A method is a `Localizer` with its components, read from a YAML file. Higher means more abnormal;
everything that is compared, counted or ranked lies in the foreground.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor

from volumediff.anomaly._check_output import sound
from volumediff.anomaly._context import MethodContext, classes_of
from volumediff.anomaly._disagreement import Spread
from volumediff.anomaly._level import Level
from volumediff.anomaly.adaptation import Adaptation
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.editing.plain import Plain
from volumediff.anomaly.ensemble import Ensemble, MeanEnsemble
from volumediff.anomaly.maps._base import Map
from volumediff.anomaly.maps.l1 import L1
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import FIRST_THRESHOLD, Learned, Method
from volumediff.anomaly.needs.levels import Descends, Levels
from volumediff.anomaly.needs.model import Diffusion, GuidanceClasses, PredictsMeans, Walked
from volumediff.anomaly.needs.training import (
    CorruptedBy,
    NoisedBy,
    Referred,
    SameSupervision,
    TrainedOn,
    WithKernel,
)
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.anomaly.routes._base import Route
from volumediff.compatibility import require
from volumediff.compatibility.chains import path_problem, sampler_problem
from volumediff.component import Requirement
from volumediff.condition import HEALTHY
from volumediff.config import name_of
from volumediff.data.corruptions import Corruption
from volumediff.guidance._base import Guidance, with_classes
from volumediff.kernels._base import Kernel
from volumediff.kernels.gaussian import Gaussian as GaussianKernel
from volumediff.model import Model
from volumediff.noise import GaussianNoise, Noise
from volumediff.randomness import key as key_of
from volumediff.recipes._base import Recipe
from volumediff.samplers._base import Sampler

__all__ = ["Localizer"]


@dataclass(frozen=True, kw_only=True)
class Localizer(Method):
    """A method that works with a diffusion model.

    Arguments:
        noise: kind of noise that the method is about; its details are the checkpoint's
        kernel: of the checkpoint
        reference: whether the checkpoint must be conditioned on the volume through a bottleneck
        recipe: of the checkpoint; None for any whose noise is everywhere in the volume itself
        corruption: that the checkpoint was trained with; None for any or none
        route: how the volume becomes pseudo-healthy
        guidance: change of the denoiser on the way down
        editing: what may change
        sampler: steps of the reverse chain
        ensemble: runs, and how their maps are merged
        map: distance between volume and pseudo-healthy volume
        first: method of the first pass, for components that start from its results
        adapt: fitting of the network to each volume outside of what a first map suspects
    """

    mark: ClassVar[str | None] = "route"
    noise: type[Noise] = GaussianNoise
    kernel: type[Kernel] = GaussianKernel
    recipe: type[Recipe] | None = None
    reference: bool = False
    corruption: type[Corruption] | None = None
    route: Route
    guidance: Guidance | None = None
    editing: Editing = field(default_factory=Plain)
    sampler: Sampler | None = None
    ensemble: Ensemble = field(default_factory=MeanEnsemble)
    map: Map = field(default_factory=L1)
    first: Method | None = None
    adapt: Adaptation | None = None

    def __post_init__(self) -> None:
        self.route.check(self.sampler)
        route = f"the route {name_of(type(self.route))}"
        require(path_problem(self.route, self.kernel, route))
        if self.sampler is not None:
            require(sampler_problem(self.sampler, self.kernel))
        if not self.route.chain and self.editing.edits:
            raise ValueError(
                f"editing {name_of(type(self.editing))}: expected a route with a reverse chain, "
                f"got {name_of(type(self.route))}; use diffuse or inversion."
            )
        if not self.route.stochastic and self.ensemble.seeds > 1:
            raise ValueError("ensemble: expected seeds: 1, since the route draws no noise.")
        names = f"editing {name_of(type(self.editing))} and route {name_of(type(self.route))}"
        if (self.editing.two_pass or self.route.two_pass) != (self.first is not None):
            raise ValueError(
                "first: expected a first pass exactly where editing or route use one, "
                f"got {'one' if self.first else 'none'} with {names}."
            )
        if self.editing.refines and self.first is not None and not self.first.own_map:
            raise ValueError(f"first: expected a method with a pseudo-healthy volume for {names}.")

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """Recipe, kernel, noise, classes and levels must be those of the run."""
        levels, goes_down = (
            self.noise_levels(),
            self.sampler is not None and self.sampler.steps > 1,
        )
        found: list[Requirement] = [Diffusion(), TrainedOn(self.recipe)]
        found += [Referred()] if self.reference else []
        found += [WithKernel(self.kernel), NoisedBy(self.noise)]
        found += [] if self.corruption is None else [CorruptedBy(self.corruption)]
        found += [] if self.guidance is None else [GuidanceClasses(self.guidance)]
        found += [PredictsMeans()] if self.sampler is None else [Walked(self.sampler)]
        found += [
            SameSupervision(self.map.supervision, self.supervision),
            Levels(levels, goes_down),
        ]
        if self.editing.refines and self.first is not None:
            found.append(Descends(levels, self.first.noise_levels()))
        return tuple(found)

    @property
    def takes_region(self) -> bool:
        """Whether the caller must say what to redraw."""
        return self.editing.takes_region or (self.first is not None and self.first.takes_region)

    @property
    def own_map(self) -> bool:
        """Whether the route makes a pseudo-healthy volume."""
        return self.route.own_map

    def noise_levels(self) -> tuple[Level, ...]:
        """Those of the ensemble, or else those of the route."""
        levels = [level for level, _ in self.ensemble.members() if level is not None]
        return tuple(levels or self.route.noise_levels())

    @property
    def passes(self) -> tuple[Method, ...]:
        """The method, and those of its first pass."""
        return (self, *(() if self.first is None else self.first.passes))

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """Runs all members of the ensemble and merges their maps; twice with an adaptation."""
        found = self._run(model, example, key=key)
        if self.adapt is None:
            return found
        assert model is not None, "check"
        suspected = self.adapt.suspected(found.map, example)
        with self.adapt.adapted(model, example, suspected=suspected, key=key_of(key, "adapt")):
            again = self._run(model, example, key=key)
        seen = {"adapt/suspected": suspected, "adapt/before": found.map}
        return replace(again, trace={**again.trace, **seen})

    def _run(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        prior = self.first.find(model, example, key=key_of(key, "first")) if self.first else None
        members = self.ensemble.members()
        sampler = None if self.sampler is None else self.sampler.of(model)
        total, healthy, count, volumes, errors = 0.0, 0.0, 0, 0, []
        own_map = self.editing.own_map and self.route.own_map
        weighing = self.ensemble.weighs
        kept: list[Tensor] = []
        trace = {} if prior is None else {"first/map": prior.map, **prior.trace}
        spread = Spread(self.ensemble.seeds) if self.ensemble.seeds > 1 else None
        for i, (level, seed) in enumerate(members):
            context = self._context(model, example, key=key_of(key, "run", i, seed), prior=prior)
            route = self.route(context, level, editing=self.editing, sampler=sampler)
            own, means = 0.0, []
            for volume in chain(route, (None,)):
                if volume is not None:
                    sound(volume, example.x, maker=self.route, what="pseudo-healthy volume")
                    healthy, volumes = healthy + volume, volumes + 1
                    if own_map:
                        context.maps.append(self.editing.weigh(context, context.compare(volume)))
                    if weighing:
                        kept.append(volume)
                while context.maps:  # summed one by one and not kept
                    a = context.maps.pop(0)
                    total, count = total + self.ensemble.forward(a), count + 1
                    means.append(a[example.foreground].double().mean())
                    own = own if spread is None else own + a
            errors.append(self.score.evidence(context, torch.stack(means).mean().float()))
            if spread is not None:
                spread.add(own / len(means))
            prefix = f"run-{i}/" if len(members) > 1 else ""
            trace.update({prefix + name: value for name, value in context.trace.items()})
        merged = self.ensemble.inverse(total / count)
        if spread is not None:  # what the uncertainty is to be compared with
            trace["ensemble/map"] = merged
        if weighing:
            merged = merged * self.ensemble.distance(
                context.kept, torch.cat(kept), foreground=example.foreground
            )
        return RawLocalization(
            map=merged,
            healthy=healthy / volumes if volumes else None,
            trace=trace,
            errors=torch.stack(errors),
            uncertainty=None if spread is None else spread.value(),
        )

    @property
    def first_threshold(self) -> tuple[Method, float] | None:
        """The method of the first pass, where the mask needs its healthy maps."""
        q = self.editing.healthy_quantile
        return None if q is None else (self.first, q)

    def with_first_threshold(self, statistics: Mapping[str, Tensor]) -> "Localizer":
        """The method with the threshold of its editing."""
        if self.first_threshold is None:
            return self
        return replace(
            self, editing=self.editing.with_first_threshold(float(statistics[FIRST_THRESHOLD]))
        )

    def _context(
        self, model: Model, example: Example, *, key: int, prior: RawLocalization | None
    ) -> MethodContext:
        condition = example.condition
        if model.recipe.reference:
            condition = model.referred(condition, model.encode(example.x))
        null = condition
        classes = classes_of(model)
        if classes:
            label = torch.full((1,), HEALTHY, device=example.x.device)
            condition = condition.replace(label=label)
            null = condition.replace(label=torch.full_like(label, classes))
        guidance = None if self.guidance is None else with_classes(self.guidance, classes)
        return MethodContext(
            model=model,
            denoise=model.denoise if guidance is None else guidance(model.denoise),
            condition=condition,
            unguided=model.denoise,
            unguided_condition=null,
            x=example.x,
            foreground=example.foreground,
            spacing_mm=example.spacing_mm,
            distance=self.map.with_model(model, condition),
            noise=model.noise((key,), tuple(example.x.shape[1:])),
            key=key,
            lossy=self.route.corrupts and not model.space.exact,
            prior_map=None if prior is None else prior.map,
            prior_healthy=None if prior is None else prior.healthy,
            region=example.region,
            saliency=example.saliency,
        )
