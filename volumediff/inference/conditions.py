r"""What a run is conditioned on in a case: its attributes, checked, or estimated where unknown.

An attribute :math:`c` that is called `estimate` is looked for on a grid between the lowest and the
highest value of the training, as the one with the least error of the predicted noise,

.. math:: \hat c = \arg\min_c \sum_{t, \epsilon}
          \| \epsilon_\theta(\alpha_t z_0 + \sigma_t \epsilon, t, c) - \epsilon \|^2,

over a few log-SNRs and noises that are the same for all values. The sum is a part of the bound of
the likelihood; a lesion counts in it as everything else does. Several attributes are looked for
one after the other. Classes are not looked for: methods choose them.

References:
    Ho et al. (2020), Denoising Diffusion Probabilistic Models, arXiv:2006.11239 (the bound)
    Li et al. (2023), Your Diffusion Model is Secretly a Zero-Shot Classifier, arXiv:2303.16203
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from volumediff.condition import HEALTHY, Condition
from volumediff.config import suggestion
from volumediff.data.grid_attributes import SPACING
from volumediff.data.preprocessing import Prepared
from volumediff.errors import UsageError
from volumediff.model import Model
from volumediff.planning.shortage import explained
from volumediff.randomness import key as key_of
from volumediff.runs.trained import Trained

__all__ = ["ESTIMATE", "ConditionEstimate", "Conditions", "check_names", "settled"]

ESTIMATE = "estimate"
VALUES = 9  # of the grid
SWEEPS = 3  # over several attributes
# Where contrast and size of structures are seen, and noise is not all: cosine t = 0.3, 0.5, 0.7.
LOG_SNRS = (1.306, -0.025, -1.367)
DRAWS = 2
# A sum is called decided where best and worst value differ by more than their paired noise.
DECIDED = 2.0  # standard errors
MARGIN = 1.0  # widths of the training's range beyond it that a value is taken at all

Attributes = Mapping[str, str | float]


@dataclass(frozen=True)
class ConditionEstimate:
    """An attribute that was looked for.

    Arguments:
        value: with the least error
        values: that were tried
        errors: mean squared error of the noise under each
        decided: whether best and worst differ by more than chance
        network_calls: what it cost
    """

    value: float
    values: tuple[float, ...]
    errors: tuple[float, ...]
    decided: bool
    network_calls: int


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a run is conditioned on in a case.

    Arguments:
        condition: of the denoiser
        values: attribute -> value that was used
        estimates: attribute -> how it was found, for those that were looked for
        warnings: what looks wrong about them
    """

    condition: Condition
    values: Mapping[str, float]
    estimates: Mapping[str, ConditionEstimate]
    warnings: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """For the record beside the outputs."""
        estimates = {name: asdict(found) for name, found in self.estimates.items()}
        return {"conditions": dict(self.values), "estimated_conditions": estimates}


def check_names(trained: Trained, given: Attributes) -> None:
    """Raises UsageError for a condition that the run does not have."""
    known = [name for name in trained.recipe.scalars if name not in SPACING]
    for name in given:
        if name not in known:
            what = ", ".join(known) or "no attribute of a case"
            raise UsageError(
                f"condition {name}: {trained.run} is conditioned on {what}."
                f"{suggestion(name, known)}"
            )


def settled(trained: Trained, attributes: Attributes, ready: Prepared, *, key: int) -> Conditions:
    """The conditions of a case.

    Arguments:
        attributes: of the case, with `estimate` for those that are looked for
        ready: the case as the model sees it
        key: of the noise

    Raises:
        UsageError: an attribute is missing or far from the training, or cannot be estimated
    """
    names = trained.recipe.scalars
    sought = [name for name in names if attributes.get(name) == ESTIMATE]
    estimates = _estimated(trained, sought, attributes, ready, key) if sought else {}
    known = {**attributes, **{name: found.value for name, found in estimates.items()}}
    condition = trained.condition(known)
    values = {name: float(known[name]) for name in names if name in known}
    warnings = [text for name, value in values.items() if (text := _beyond(trained, name, value))]
    warnings += [
        f"The volume does not tell its {name}: {found.value:g} is hardly likelier than others."
        for name, found in estimates.items()
        if not found.decided
    ]
    return Conditions(condition, values, estimates, tuple(warnings))


def _beyond(trained: Trained, name: str, value: float) -> str:
    """What is wrong about a value outside of the training's range; nothing within.

    Raises:
        UsageError: it is so far outside that it is a mistake
    """
    ends = trained.statistics.ranges.get(name)
    if ends is None or ends[0] <= value <= ends[1]:
        return ""
    low, high = ends
    words = f"{name} {value:g}: the run was trained with {low:g} to {high:g}"
    far = MARGIN * ((high - low) or abs(high))
    if not low - far <= value <= high + far:
        raise UsageError(f"condition {words}; give a value in this range, in the same unit.")
    return f"Condition {words}."


@torch.no_grad()
def _estimated(
    trained: Trained, sought: Sequence[str], attributes: Attributes, ready: Prepared, key: int
) -> dict[str, ConditionEstimate]:
    """The likeliest values, one attribute after the other, the others at their likeliest so far,
    until none changes: for several attributes a local optimum. They begin in the middle."""
    grids = {name: _grid(trained, name) for name in sought}
    values = {name: float(grid[VALUES // 2]) for name, grid in grids.items()}
    found: dict[str, ConditionEstimate] = {}
    shape = tuple(ready.x.shape[1:])
    with (
        explained(trained.config, mode="infer", device=trained.device, shape=shape),
        trained.config.memory.arithmetic(),
    ):
        errors = _Errors(trained, attributes, ready, key)
        for _ in range(SWEEPS):
            before = dict(values)
            for name, grid in grids.items():
                calls = errors.calls
                rows = np.stack([errors({**values, name: float(v)}) for v in grid])
                earlier = found[name].network_calls if name in found else 0
                found[name] = _estimate(grid, rows, calls=earlier + errors.calls - calls)
                values[name] = found[name].value
            if values == before or len(sought) == 1:
                break
    return found


def _grid(trained: Trained, name: str) -> np.ndarray:
    """The values of an attribute that are tried.

    Raises:
        UsageError: its range is not known
    """
    ends = trained.statistics.ranges.get(name)
    if ends is None:
        raise UsageError(
            f"condition {name}: cannot be estimated, as {trained.run} does not say which values "
            "it was trained with; give the value, or import the weights again and say its range."
        )
    return np.linspace(*ends, VALUES)


class _Errors:
    """Squared errors of the noise that a model predicts for a case under some values.

    Arguments:
        trained: the run
        attributes: of the case
        ready: the case as the model sees it
        key: of the noise, which is the same for all values

    Raises:
        UsageError: the model predicts no noise, or more than attributes conditions it
    """

    def __init__(
        self, trained: Trained, attributes: Attributes, ready: Prepared, key: int
    ) -> None:
        model = trained.task.lend(Model)
        if model is None or model.kernel.path != "gaussian" or trained.recipe.reference:
            raise UsageError(
                f"conditions: cannot be estimated with {trained.run}; expected a model that "
                "predicts Gaussian noise from the noisy state and its conditions alone."
            )
        self.trained, self.model, self.attributes, self.calls = trained, model, attributes, 0
        x = ready.x[None].to(trained.device)
        self.z = model.encode(x)
        self.noise = model.noise((key_of(key, "condition"),), tuple(x.shape[1:]))
        log_snrs = torch.tensor(LOG_SNRS, dtype=torch.float64)
        self.times = model.kernel.schedule.time(log_snrs).tolist()
        self.known: dict[tuple[float, ...], np.ndarray] = {}

    def __call__(self, values: Mapping[str, float]) -> Float[np.ndarray, "n"]:
        """The error of each of the draws and levels."""
        place = tuple(values.values())
        if place not in self.known:
            condition = self._condition(values)
            draws = range(DRAWS * len(self.times))
            self.known[place] = np.array([self._error(i, condition) for i in draws])
        return self.known[place]

    def _condition(self, values: Mapping[str, float]) -> Condition:
        condition = self.trained.condition({**self.attributes, **values})
        if not self.trained.recipe.classes:
            return condition
        label = torch.full((1,), HEALTHY, device=self.trained.device)
        return condition.replace(label=label)

    def _error(self, draw: int, condition: Condition) -> float:
        eps, kernel = self.noise(draw), self.model.kernel
        t = torch.full((1,), self.times[draw % len(self.times)], device=self.trained.device)
        found = self.model.denoise(kernel.corrupt(self.z, t, eps), t, condition).eps
        self.calls += 1
        return float(((found - eps) ** 2).double().mean())


def _estimate(grid: np.ndarray, errors: np.ndarray, *, calls: int) -> ConditionEstimate:
    """The value with the least error, by the errors (value, draw)."""
    means = errors.mean(axis=1)
    best = int(means.argmin())
    apart = errors[int(means.argmax())] - errors[best]
    chance = float(apart.std(ddof=1)) / np.sqrt(len(apart))
    return ConditionEstimate(
        value=float(grid[best]),
        values=tuple(float(value) for value in grid),
        errors=tuple(float(value) for value in means),
        decided=bool(apart.mean() > DECIDED * chance),
        network_calls=calls,
    )
