r"""Localization with an autoencoder: a row of the slots

    x ─ reconstruction(autoencoder) ─▶ x̂ ─ map ─▶ a ─ ensemble ─▶ a ─ normalize ─ post ─▶ map

The autoencoder is the run's own, or that of a latent diffusion run, which holds one.
"""

from dataclasses import dataclass, field

import torch

from volumediff.anomaly._spread import Spread
from volumediff.anomaly.calibration import Example
from volumediff.anomaly.ensemble import Ensemble, Mean
from volumediff.anomaly.finding import Finding
from volumediff.anomaly.maps._base import Map
from volumediff.anomaly.maps.l1 import L1
from volumediff.anomaly.method import Learned, Method
from volumediff.anomaly.reconstruction import Reconstruction, SinglePass, View
from volumediff.autoencoders import Reconstructor
from volumediff.features.encoder import latent_of
from volumediff.randomness import key as key_of

__all__ = ["Rebuilder"]


@dataclass(frozen=True, kw_only=True)
class Rebuilder(Method):
    """A row of an autoencoder.

    Arguments:
        autoencoder: kind of autoencoder that the method is about; its details are the checkpoint's
        reconstruction: how the pseudo-healthy volume is made
        ensemble: seeds of what is drawn, and how their maps are merged
        map: distance between volume and pseudo-healthy volume
    """

    autoencoder: type[Reconstructor] = Reconstructor
    reconstruction: Reconstruction = field(default_factory=SinglePass)
    ensemble: Ensemble = field(default_factory=Mean)
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

    def check(self, model: Learned) -> None:
        """The run must hold an autoencoder of the right kind."""
        part = self._part(model)
        if not isinstance(part, self.autoencoder):
            wanted = self.autoencoder.__name__.lower()
            raise ValueError(
                f"autoencoder: expected the run of a {wanted}, got one of a "
                f"{type(part).__name__.lower()}; use a run that trains it, see "
                "configs/autoencoders."
            )
        problem = self.reconstruction.problem(part)
        if problem:
            raise ValueError(f"reconstruction {type(self.reconstruction).__name__}: {problem}")
        self.map.check(part)

    def find(self, model: Learned, example: Example, *, key: int) -> Finding:
        """Reconstructs once per seed and merges the maps."""
        part, seeds = self._part(model), self.ensemble.seeds
        distance = self.map.bound(part, example.condition)
        place = {"foreground": example.foreground, "spacing_mm": example.spacing_mm}
        total, healthy, errors, trace = 0.0, 0.0, [], {}
        spread = Spread(seeds) if seeds > 1 else None
        for i, (_, seed) in enumerate(self.ensemble.members()):
            view = View(part, example, key_of(key, "run", i, seed))
            volume = self.reconstruction(view)
            a = self.reconstruction.weigh(view, volume, distance(example.x, volume, **place))
            total, healthy = total + self.ensemble.forward(a), healthy + volume
            errors.append(a[example.foreground].double().mean().float())
            if spread is not None:
                spread.add(a)
            prefix = f"run-{i}/" if seeds > 1 else ""
            trace.update({prefix + name: value for name, value in view.trace.items()})
        return Finding(
            map=self.ensemble.inverse(total / seeds),
            healthy=healthy / seeds,
            trace=trace,
            errors=torch.stack(errors),
            uncertainty=None if spread is None else spread.value(),
        )

    def _part(self, model: Learned) -> Reconstructor:
        """The autoencoder of a run.

        Raises:
            ValueError: it has none
        """
        if isinstance(model, Reconstructor):
            return model
        if model is None:
            raise ValueError("expected a trained model, got none; only baselines work without.")
        latent = latent_of(model.space)
        if latent is None or latent is not model.space:
            kind = type(model.space).__name__.lower()
            raise ValueError(
                "expected the run of an autoencoder, or of a diffusion model of latents, got one "
                f"of states of the space {kind}; train configs/autoencoders/vae_64.yaml."
            )
        return latent.autoencoder
