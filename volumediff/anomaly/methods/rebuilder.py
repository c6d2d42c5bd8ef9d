r"""The localization method of autoencoders: components that turn a volume into a map,

    x ─ reconstruction(autoencoder) ─▶ x̂ ─ map ─▶ a ─ ensemble ─▶ a ─ normalize ─ post ─▶ map

The autoencoder is the run's own, or that of a latent diffusion run, which holds one.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from volumediff.anomaly._disagreement import Spread
from volumediff.anomaly.ensemble import Ensemble, MeanEnsemble
from volumediff.anomaly.maps._base import Map
from volumediff.anomaly.maps.l1 import L1
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned, Method
from volumediff.anomaly.needs.autoencoder import Reconstructs, autoencoder_in
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.anomaly.reconstruction import Reconstruction, ReconstructionView, SinglePass
from volumediff.autoencoders import Reconstructor
from volumediff.component import Requirement
from volumediff.randomness import key as key_of

__all__ = ["Rebuilder"]


@dataclass(frozen=True, kw_only=True)
class Rebuilder(Method):
    """A method that works with an autoencoder.

    Arguments:
        autoencoder: kind of autoencoder that the method is about; its details are the checkpoint's
        reconstruction: how the pseudo-healthy volume is made
        ensemble: seeds of what is drawn, and how their maps are merged
        map: distance between volume and pseudo-healthy volume
    """

    mark: ClassVar[str | None] = "reconstruction"
    autoencoder: type[Reconstructor] = Reconstructor
    reconstruction: Reconstruction = field(default_factory=SinglePass)
    ensemble: Ensemble = field(default_factory=MeanEnsemble)
    map: Map = field(default_factory=L1)

    def __post_init__(self) -> None:
        if self.ensemble.levels or self.ensemble.log_snrs:
            raise ValueError(
                "ensemble: expected seeds alone, since there is no noise, got levels."
            )
        if self.ensemble.seeds > 1 and not self.reconstruction.stochastic:
            raise ValueError(
                "ensemble: expected seeds: 1, since the reconstruction draws nothing."
            )

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """The run must hold an autoencoder of the right kind."""
        return (Reconstructs(self.autoencoder),)

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """Reconstructs once per seed and merges the maps."""
        part, seeds = autoencoder_in(model), self.ensemble.seeds
        distance = self.map.with_model(part, example.condition)
        place = {"foreground": example.foreground, "spacing_mm": example.spacing_mm}
        total, healthy, errors, trace = 0.0, 0.0, [], {}
        spread = Spread(seeds) if seeds > 1 else None
        for i, (_, seed) in enumerate(self.ensemble.members()):
            view = ReconstructionView(part, example, key_of(key, "run", i, seed))
            volume = self.reconstruction(view)
            a = self.reconstruction.weigh(view, volume, distance(example.x, volume, **place))
            total, healthy = total + self.ensemble.forward(a), healthy + volume
            errors.append(a[example.foreground].double().mean().float())
            if spread is not None:
                spread.add(a)
            prefix = f"run-{i}/" if seeds > 1 else ""
            trace.update({prefix + name: value for name, value in view.trace.items()})
        return RawLocalization(
            map=self.ensemble.inverse(total / seeds),
            healthy=healthy / seeds,
            trace=trace,
            errors=torch.stack(errors),
            uncertainty=None if spread is None else spread.value(),
        )
