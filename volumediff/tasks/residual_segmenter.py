"""A network that segments anomalies from volumes and their reconstructions by a diffusion run.

The diffusion model stays frozen and is not copied: checkpoints hold the SHA-256 of its weights,
and neither training nor localization goes on with others. Its statistics are copied, because the
atlas and the scalars that condition it mean the same here.

References:
    Behrendt et al. (2024), Combining Reconstruction-based Unsupervised Anomaly Detection with
    Supervised Segmentation for Brain MRIs (SADM), MIDL
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.compatibility import require
from volumediff.compatibility.training import comparison_problem, supervision_problem
from volumediff.config import build
from volumediff.errors import UsageError
from volumediff.model import Model
from volumediff.recipes._base import Recipe
from volumediff.residual_segmentation import ResidualSegmentation
from volumediff.samples.dataset import Crop, crop_of
from volumediff.samples.landmarks import keep_landmarks
from volumediff.samples.statistics import Statistics
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Component, ForRun
from volumediff.shapes import Shape
from volumediff.storage import checkpoint
from volumediff.storage.folder import discard
from volumediff.tasks._agreement import agree
from volumediff.tasks._base import Stage, Task, best_of
from volumediff.tasks._borrowing import borrowed, source_of
from volumediff.tasks._recipes import recipe_of
from volumediff.tasks._refusals import Refusals

__all__ = ["ResidualSegmenterConfig", "ResidualSegmenterTask", "supervision_of"]

WHERE = "residual_segmenter.of"


class ResidualSegmenterConfig(RunConfig):
    """Keys of a residual segmentation network. The data of the diffusion run are taken where
    none are named.

    Arguments:
        residual_segmenter: architecture, and `of`, the folder of the diffusion run
        recipe: labels that are learned
        times: density of the times of the diffusion run's estimates
    """

    residual_segmenter: ForRun
    recipe: Component
    times: Component = "uniform"

    @property
    def of(self) -> Path:
        """The diffusion run."""
        return Path(self.residual_segmenter["of"])

    def borrows(self) -> dict[str, Path]:
        """The diffusion run."""
        return {WHERE: self.of}


class ResidualSegmenterTask(Task):
    """A residual segmenter of volumes with what a frozen diffusion model makes of them.

    Arguments:
        config: of the run
        module: the residual segmenter with the model
        recipe: what is to be found
        digest: SHA-256 of the model's weights
    """

    schema = ResidualSegmenterConfig
    noun = "a residual segmenter"
    fits_intensities = False

    def __init__(
        self,
        config: RunConfig,
        module: ResidualSegmentation,
        *,
        recipe: Recipe,
        digest: str = "",
    ) -> None:
        super().__init__(
            config,
            module,
            main="residual_segmenter",
            recipe=recipe,
            digest=digest,
            frozen=[module.model],
        )
        self.residual_segmenter, self.model = module, module.model

    @classmethod
    def resolve(cls, config: RunConfig) -> RunConfig:
        """The data of the diffusion run, where none are named."""
        if config.data.root is not None:
            return config
        return config.model_copy(update={"data": source_of(config.of, where=WHERE).data})

    @classmethod
    def keep(cls, config: RunConfig, run: Path) -> None:
        """Copies what the diffusion run measured. Until the first checkpoint it may be trained
        anew, and measure anew."""
        best_of(config.of, where=WHERE)
        if not checkpoint.exists(run, "last"):
            discard(run / "statistics")
            Statistics.load(config.of).save(run)
            keep_landmarks(run, config.of)

    @classmethod
    def build(cls, config: RunConfig, run: Path | None) -> "ResidualSegmenterTask":
        """With the diffusion model that it is for: trained, where there is a run."""
        recipe = recipe_of(config)
        found = borrowed(config.of, where=WHERE, run=run)
        model = found.task.lend(Model)
        if model is None:
            raise UsageError(
                f"{WHERE} = {config.of}: expected the run of a diffusion model, got that of "
                f"{found.task.noun}."
            )
        _check(config, recipe, found.task.config, model)
        spec = {n: v for n, v in config.residual_segmenter.items() if n != "of"}
        residual_segmenter = build("residual_segmenter", spec, channels=config.data.channel_count)
        model.dtype = config.memory.torch_dtype
        times = build("times", config.times)
        module = ResidualSegmentation(
            model, residual_segmenter, dtype=model.dtype, time_density=times, recipe=recipe
        )
        config.memory.apply(module)
        return cls(config, module, recipe=recipe, digest=found.digest)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"residual_segmenter": self.residual_segmenter.residual_segmenter}

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        return self.residual_segmenter.loss(batch)

    @property
    def located(self) -> bool:
        return self.model.network.coordinates

    def crop(self, shape: Shape) -> Crop:
        return crop_of(self.model.space, shape)

    def grid(self, shape: Shape) -> Shape:
        return self.model.space.grid(shape)

    @torch.no_grad()
    def use(self, batch: Batch, *, stage: Stage) -> None:
        """What a map asks of a residual segmenter, on a one-step estimate."""
        x, module = batch.images[-1], self.residual_segmenter
        with stage("reconstruct"):
            healthy = module.reconstruct(x, batch.keys, batch.condition, batch.images[:-1])
        with stage("compare"):
            module.probability(x, healthy)

    @property
    def refusals(self) -> Refusals:
        reason = (
            "trains a residual segmenter, expected the run of a diffusion model or of an "
            "autoencoder; residual segmenters are given to methods such as sadm with map.run=RUN."
        )
        labels = self.residual_segmenter.labels
        segment = None
        if len(labels) > 1:
            segment = (
                f"was trained to find the labels {', '.join(map(str, labels))} as one, so that it "
                "cannot tell them apart; train with one of them."
            )
        return Refusals(localize=reason, segment=segment, sample=reason)


def supervision_of(recipe: Recipe) -> str:
    """What a residual segmenter learns from: synthetic anomalies (self) or masks (full).

    Raises:
        UsageError: another recipe
    """
    require(supervision_problem(recipe), UsageError)
    return recipe.marks


def _check(config: RunConfig, recipe: Recipe, source: RunConfig, model: Model) -> None:
    """Raises UsageError, with the reason, where a residual segmenter cannot learn from a model."""
    supervision_of(recipe)
    problem = comparison_problem(model)
    if problem is not None:
        raise UsageError(f"{WHERE} = {config.of}: {problem}")
    pairs = {
        "data.preprocessing": (config.data.preprocessing, source.data.preprocessing),
        "data.channels": (config.data.channels, source.data.channels),
        "recipe.atlas": (recipe.atlas, model.recipe.atlas),
        "recipe.scalars": (recipe.scalars, model.recipe.scalars),
    }
    agree(pairs, where=WHERE, of=config.of)
    low, high = build("times", config.times).support
    least, most = model.time_density.support
    if low < least or high > most:
        raise UsageError(
            f"times: expected times within those of {WHERE} = {config.of}, [{least:g}, {most:g}], "
            f"got [{low:g}, {high:g}]."
        )
