"""The diffusion run whose reconstructions a comparer learns from: what must agree with it.

Its weights are not copied: the checkpoints of the comparer hold their SHA-256, and neither
training nor localization goes on with others.
"""

from pathlib import Path

from volumediff.config import build, name_of
from volumediff.errors import UsageError
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.recipes._base import Recipe
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.recipes.synthetic_anomalies import SyntheticAnomalies
from volumediff.storage import checkpoint
from volumediff.storage.folder import discard
from volumediff.training.landmarks import keep_landmarks
from volumediff.training.run_config import RunConfig, of_run
from volumediff.training.statistics import Statistics

__all__ = ["check_compared", "keep_statistics", "supervision_of"]


def check_compared(config: RunConfig, source: RunConfig, model: Model) -> None:
    """Raises UsageError, with the reason, where a comparer cannot learn from a model.

    Arguments:
        config: of the comparer's run
        source: of the diffusion run
        model: of the diffusion run
    """
    of, recipe = of_run(config), build("recipe", config.recipe)
    supervision_of(recipe)
    if not model.recipe.whole or type(model.kernel) is not Gaussian:
        raise UsageError(
            f"comparer.of = {of}: expected a model of whole volumes under Gaussian noise (recipe "
            f"healthy or class_conditional, kernel gaussian), got {name_of(type(model.recipe))} "
            f"and {name_of(type(model.kernel))}."
        )
    pairs = {
        "data.preprocessing": (config.data.preprocessing, source.data.preprocessing),
        "data.channels": (config.data.channels, source.data.channels),
        "recipe.atlas": (recipe.atlas, model.recipe.atlas),
        "recipe.scalars": (recipe.scalars, model.recipe.scalars),
    }
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise UsageError(f"{name}: expected that of comparer.of = {of}, {theirs}, got {ours}.")
    (low, high), (least, most) = config.times, model.times
    if low < least or high > most:
        raise UsageError(
            f"times: expected times within those of comparer.of = {of}, [{least:g}, {most:g}], "
            f"got [{low:g}, {high:g}]."
        )


def supervision_of(recipe: Recipe) -> str:
    """What a comparer learns from: synthetic anomalies (self) or masks (full).

    Raises:
        UsageError: another recipe
    """
    if isinstance(recipe, SyntheticAnomalies):
        return "self"
    if isinstance(recipe, LabelDiffusion) and recipe.absent == -1:
        return "full"
    raise UsageError(
        "recipe: expected synthetic_anomalies, or label_diffusion with absent: -1, for a "
        f"comparer, got {name_of(type(recipe))}; use recipe=synthetic_anomalies."
    )


def keep_statistics(config: RunConfig, run: Path) -> None:
    """Copies what the diffusion run measured: its atlas and scalars mean the same here, and its
    intensity landmarks. Until the first checkpoint it may be trained anew, and measure anew.

    Raises:
        UsageError: the diffusion run is not trained yet
    """
    of = of_run(config)
    if not checkpoint.exists(of, "best"):
        raise UsageError(f"comparer.of = {of}: has no checkpoint yet; train it first.")
    if not checkpoint.exists(run, "last"):
        discard(run / "statistics")
        Statistics.load(of).save(run)
        keep_landmarks(run, of)
