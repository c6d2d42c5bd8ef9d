"""Another run for a member of a fusion, with volumes prepared as that run wants them.

    prepared volume of the fusion's run ─ grid and intensities of the other ─▶ member ─ back ─▶ map

The volume that the fusion's run has prepared is prepared once more, so that lesions that were put
into it are there as well. What the first preparation has lost, the second does not bring back:
of two runs, take the one with the finer grid and the larger field of view for the fusion.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.anomaly.method_input import Example
from volumediff.data.intensity import Window
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.seen import Seen
from volumediff.data.volume import Volume
from volumediff.errors import UsageError
from volumediff.runs.trained import Trained, load_trained
from volumediff.samples.seen_record import seen_by
from volumediff.storage.digests import sha256

__all__ = ["PreparingRun", "lent_run"]

# Intensities in [-1, 1] are handed on in [1, 3], so that nothing but the background is 0.
SHIFT = 2.0
SAME = Window(center=SHIFT, width=2.0, foreground="nonzero")


@dataclass(frozen=True, eq=False, repr=False)
class PreparingRun:
    """A run with the preparation of volumes of another one.

    Arguments:
        trained: the run
        preprocessing: from volumes of the other run to those of this one
        seen: what its weights were trained on
        facts: where it comes from, for the records of results
    """

    trained: Trained
    preprocessing: Preprocessing
    seen: Seen
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"PreparingRun({self.digest[:16]})"

    @property
    def model(self) -> nn.Module:
        """What the run trained."""
        return self.trained.model

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights and of what they see."""
        return sha256(self.trained.digest, repr(self.preprocessing))

    def prepared(
        self, example: Example
    ) -> tuple[Example, Callable[[Float[Tensor, "1 1 d2 h2 w2"]], Float[Tensor, "1 1 d h w"]]]:
        """The volume as this run takes it, and the way back for maps.

        Beyond the field of view of this run a map has its lowest value, at most 0.
        """
        x = ((example.x + SHIFT) * example.foreground)[0].float().cpu().numpy()
        affine = np.diag([*example.spacing_mm, 1.0])
        volume = Volume.from_array(x, affine, name="prepared volume")
        ready = self.preprocessing.prepare_volumes([volume])
        condition = self.trained.condition({})
        there = self.trained.placed(
            ready.x, ready.foreground, ready.spacing_mm, condition=condition
        )

        def back(a: Tensor) -> Tensor:
            lowest = min(0.0, float(a.min()))
            here = self.preprocessing.to_canonical(a[0].float().cpu(), ready.record, fill=lowest)
            return torch.from_numpy(here)[None].to(example.x)

        return there, back


def lent_run(where: str, run: Path, trained: Trained) -> PreparingRun:
    """Another run, for volumes that were prepared for this one.

    Arguments:
        where: what named the folder, for messages
        run: its folder
        trained: the run whose volumes they are

    Raises:
        UsageError: no run, other channels, intensities that cannot be had, or one that is
            conditioned on what a prepared volume does not tell
    """
    other = load_trained(run, device=str(trained.device))
    if other.channels != trained.channels or other.config.data.channels != (
        trained.config.data.channels
    ):
        raise UsageError(
            f"{where}: expected a run on the channels {_channels(trained)} of {trained.name}, got "
            f"{_channels(other)}; take a run on the same images."
        )
    if other.recipe.scalars:
        raise UsageError(
            f"{where}: expected a run that is conditioned on the volume alone, got one that needs "
            f"{', '.join(other.recipe.scalars)}; take another run."
        )
    ours, theirs = trained.preprocessing.intensity, other.preprocessing.intensity
    if ours == theirs:
        intensity = SAME
    elif isinstance(ours, Window) or isinstance(theirs, Window):
        raise UsageError(
            f"{where}: expected the intensities of {trained.name}, {ours}, since those of a "
            f"window cannot be had from others, got {theirs}; take a run with the same window."
        )
    else:
        inside = any(f.name == "foreground" for f in fields(theirs))
        intensity = replace(theirs, foreground="nonzero") if inside else theirs
    preprocessing = replace(other.preprocessing, intensity=intensity)
    facts = {
        "run": str(run.resolve()),
        "checkpoint": other.checkpoint,
        "weights_sha256": other.digest,
    }
    return PreparingRun(other, preprocessing, seen_by(run), facts)


def _channels(trained: Trained) -> str:
    names = trained.config.data.channels
    return ", ".join(names) if names else f"{trained.channels} without names"
