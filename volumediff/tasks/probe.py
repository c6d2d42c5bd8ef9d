"""A probe: small heads learn labels from the features of a frozen diffusion run.

The diffusion model stays frozen and is not copied: checkpoints hold the SHA-256 of its weights,
and neither training nor segmentation goes on with others. Features of drawn voxels are computed
once, before step 0; a step trains heads alone.

References:
    Baranchuk et al. (2022), Label-Efficient Semantic Segmentation with Diffusion Models,
    arXiv:2112.03126
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.compatibility import require
from volumediff.compatibility.features import probe_problem
from volumediff.compatibility.methods import highest_problem
from volumediff.condition import Condition
from volumediff.errors import UsageError
from volumediff.features.denoiser import denoiser_problem
from volumediff.features.probe import BLOCK, Probe
from volumediff.memory.domain import ALONE, sharing
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.model import Model
from volumediff.samples.dataset import Samples
from volumediff.samples.features import VoxelFeatures, dealt, voxel_features
from volumediff.samples.landmarks import keep_landmarks
from volumediff.samples.statistics import Statistics
from volumediff.samples.volumes import TrainingVolume
from volumediff.schedules._base import Schedule
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Component, Section, Share
from volumediff.shapes import Shape
from volumediff.storage import checkpoint
from volumediff.storage.cache import Cache
from volumediff.storage.folder import discard
from volumediff.tasks._agreement import agree
from volumediff.tasks._base import Stage, Task, best_of
from volumediff.tasks._borrowing import borrowed, source_of
from volumediff.tasks._recipes import recipe_of
from volumediff.tasks._refusals import Refusals

__all__ = ["ProbeConfig", "ProbeSection", "ProbeTask"]

WHERE = "probe.of"
Time = Annotated[float, Field(gt=0, le=1)]


class ProbeSection(Section):
    """What a probe reads, and the heads that read it.

    Arguments:
        of: folder of the diffusion run
        levels: levels of its network, such as encoder.0, middle or decoder.1, or encoder and
            decoder for all of theirs
        times: times in (0, 1] at which the volume is noised
        log_snrs: in place of `times`, the logarithms of α²/σ², the same noise under every schedule
        hidden: units of the hidden layers; none for linear probes
        members: number of heads, whose answers are averaged
        shared: one head sees one time after the other, and its answers are averaged
        points: most labelled voxels of each class that are drawn from a volume
        batch: voxels that a head sees per sample
        prior: how far the heads learn the shares that classes have in volumes, from 0 for equally
            likely classes to 1 for the loss over all voxels
        background_weight: weight of the background beside a label
        search: keep one level and one time alone, those whose linear probe is best on the
            validation volumes
    """

    of: Path
    levels: tuple[str, ...] = ("decoder",)
    times: tuple[Time, ...] = ()
    log_snrs: tuple[float, ...] = ()
    hidden: tuple[PositiveInt, ...] = (128, 32)
    members: PositiveInt = 10
    shared: bool = False
    points: PositiveInt = 1000
    batch: Annotated[int, Field(ge=2)] = 256
    prior: Share = 1.0
    background_weight: NonNegativeFloat = 1.0
    search: bool = False

    @model_validator(mode="after")
    def _sound(self) -> "ProbeSection":
        if bool(self.times) == bool(self.log_snrs):
            raise ValueError(
                f"takes times or log_snrs, got {list(self.times)} and {list(self.log_snrs)}"
            )
        if self.search and self.shared:
            raise ValueError("takes search: false with a shared head, which sees all times")
        return self

    def levels_of(self, schedule: Schedule) -> tuple[float, ...]:
        """The times under a schedule."""
        if self.times:
            return self.times
        found = schedule.time(torch.tensor(self.log_snrs, dtype=torch.float64, device="cpu"))
        return tuple(found.tolist())


class ProbeConfig(RunConfig):
    """Keys of a probe. The data of the diffusion run are taken where none are named.

    Arguments:
        probe: features that are read, and the heads that read them
        recipe: labels that are learned
    """

    probe: ProbeSection
    recipe: Component

    @model_validator(mode="after")
    def _once(self) -> "ProbeConfig":
        if self.crop is not None:
            raise ValueError("takes crop: null with a probe: voxels are drawn from whole volumes")
        for name in ("augmentation", "drawn", "lesion_free"):
            if getattr(self.data, name) is not None:
                raise ValueError(
                    f"takes data.{name}: null with a probe: features are computed once"
                )
        return self

    def borrows(self) -> dict[str, Path]:
        """The diffusion run."""
        return {WHERE: self.probe.of}


class ProbeTask(Task):
    """Heads on features of a frozen diffusion model; the heads are the one player.

    Arguments:
        config: of the run
        module: the heads with the model
        digest: SHA-256 of the model's weights
    """

    schema = ProbeConfig
    noun = "a probe"
    fits_intensities = False

    def __init__(self, config: ProbeConfig, module: Probe, *, digest: str = "") -> None:
        super().__init__(
            config,
            module,
            main="heads",
            recipe=module.recipe,
            digest=digest,
            frozen=[module.model],
        )
        self.probe = module
        # Whether the loss sees features of voxels, computed beforehand, in place of volumes.
        self.pooled = False

    @classmethod
    def resolve(cls, config: RunConfig) -> RunConfig:
        """The data of the diffusion run, as they are, where none are named."""
        if config.data.root is not None:
            return config
        plain = {"augmentation": None, "drawn": None, "lesion_free": None}
        data = source_of(config.probe.of, where=WHERE).data.model_copy(update=plain)
        return config.model_copy(update={"data": data})

    @classmethod
    def keep(cls, config: RunConfig, run: Path) -> None:
        """Copies what the diffusion run measured. Until the first checkpoint it may be trained
        anew, and measure anew."""
        of = config.probe.of
        best_of(of, where=WHERE)
        if not checkpoint.exists(run, "last"):
            discard(run / "statistics")
            Statistics.load(of).save(run)
            keep_landmarks(run, of)

    @classmethod
    def build(cls, config: RunConfig, run: Path | None) -> "ProbeTask":
        """With the diffusion model that it reads: trained, where there is a run."""
        recipe, section = recipe_of(config), config.probe
        found = borrowed(section.of, where=WHERE, run=run)
        model = found.task.lend(Model)
        if model is None:
            raise UsageError(
                f"{WHERE} = {section.of}: expected the run of a diffusion model, got that of "
                f"{found.task.noun}."
            )
        require(probe_problem(recipe, model), UsageError)
        source = found.task.config
        pairs = {
            "data.preprocessing": (config.data.preprocessing, source.data.preprocessing),
            "data.channels": (config.data.channels, source.data.channels),
            "recipe.scalars": (recipe.scalars, model.recipe.scalars),
        }
        agree(pairs, where=WHERE, of=section.of)
        # Levels are read of a network in one piece; the planner may try what does not help.
        if run is not None and config.memory.streams:
            raise UsageError(
                "memory: expected slab null and offload false for a probe, and processes.domain "
                "1: it reads the levels of a network in one piece; leave them out."
            )
        policy: MemoryPolicy = replace(config.memory, slab=None, offload=False)
        with sharing(ALONE):
            policy.apply(model)
        require(denoiser_problem(model), UsageError)
        times = section.levels_of(model.kernel.schedule)
        problem = highest_problem(model, max(times))
        if problem is not None:
            raise UsageError(f"probe.times: {problem}")
        model.dtype = config.memory.torch_dtype
        try:
            module = Probe(
                model,
                recipe,
                levels=section.levels,
                times=times,
                hidden=section.hidden,
                members=section.members,
                shared=section.shared,
                batch=section.batch,
            )
        except ValueError as error:
            raise UsageError(f"probe.{error}") from None
        return cls(config, module, digest=found.digest)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"heads": self.probe.heads}

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        return self.probe.loss(batch, pooled=self.pooled)

    # Samples

    def fit(
        self, samples: Samples, *, fresh: bool, cache: Cache, accelerator: Accelerator
    ) -> Samples:
        """Features of drawn voxels, and what the buffers of the probe say of them."""
        section, values, seed = self.config.probe, self.recipe.labels, self.config.seed
        described = {
            "weights": self.digest,
            "levels": list(self.probe.levels),
            "times": list(self.probe.times),
            "dtype": self.config.memory.dtype,
        }

        def rows(volume: TrainingVolume, points: Tensor) -> Tensor:
            x = volume.x[None].to(accelerator.device)
            scalars = samples.dataset.statistics.standardised(volume.attributes)
            told = None if scalars is None else scalars[None].float().to(x.device)
            points = points.to(x.device)
            return self.probe.rows(x, Condition(scalars=told), points).flatten(1)

        made = [
            voxel_features(
                part.volumes,
                rows,
                values=values,
                each=section.points,
                seed=seed,
                fingerprint={**described, "attributes": self.recipe.scalars},
                cache=cache,
                accelerator=accelerator,
            )
            for part in (samples.dataset, samples.held)
        ]
        if fresh:
            self._measure(*made, cache=cache)
        training = dealt(made[0], seed=seed, cache=cache, accelerator=accelerator)
        self.pooled = True
        return replace(
            samples,
            dataset=replace(samples.dataset, volumes=training),
            held=replace(samples.held, volumes=made[1]),
        )

    def _measure(
        self, training: list[TrainingVolume], held: list[TrainingVolume], *, cache: Cache
    ) -> None:
        probe, section, values = self.probe, self.config.probe, self.recipe.labels
        found = VoxelFeatures.of(training, values)
        drawn = found.drawn()
        missing = [str(v) for v, n in zip(values, drawn[1:].tolist(), strict=True) if n == 0]
        if missing:
            raise UsageError(
                f"recipe.labels: no training volume has the label {' or '.join(missing)}; leave "
                "it out, or give volumes that have it."
            )
        shape = probe.mean.shape
        rows = found.rows.view(-1, *shape)
        probe.measure(
            rows,
            drawn,
            found.voxels,
            prior=section.prior,
            background=section.background_weight,
        )
        if not section.search:
            return
        if not held:
            raise UsageError(
                "probe.search: expected validation volumes to choose level and time on, got none; "
                "raise data.split.validation."
            )
        other = VoxelFeatures.of(held, values)
        table = probe.search(rows, found.y, other.rows.view(-1, *shape), other.y)
        for name, t, score in table:
            cache.report(f"{name} at t = {t:.3f}: mean recall {score:.3f} on validation volumes")

    # Planning and use

    def grid(self, shape: Shape) -> Shape:
        return self.probe.model.space.grid(shape)

    @torch.no_grad()
    def use(self, batch: Batch, *, stage: Stage) -> None:
        """Levels of one volume at all times, then a block of its voxels."""
        x, condition = batch.images[-1][:1], batch.condition.map(lambda c: c[:1])
        with stage("features"):
            found = self.probe.maps(x, condition)
        with stage("heads"):
            points = torch.zeros((BLOCK, 3), dtype=torch.float64, device=x.device)
            self.probe.answer(found, points)

    @property
    def refusals(self) -> Refusals:
        reason = (
            "trains a probe, which finds labels; segment with it, or use the run of the diffusion "
            "model."
        )
        return Refusals(localize=reason, segment=None, sample=reason)
