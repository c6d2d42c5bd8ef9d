"""A trained run, ready for new volumes: model, preprocessing, conditions and splits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from volumediff.anomaly.method_input import Example
from volumediff.condition import Condition
from volumediff.data.cases import Case
from volumediff.data.grid_attributes import with_spacing
from volumediff.data.population import Population
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.splits import Split
from volumediff.distributed.joined_passes import join, shared_mesh
from volumediff.distributed.launch import local_rank, started
from volumediff.errors import DataError, UsageError
from volumediff.memory.domain import sharing
from volumediff.model import Model
from volumediff.recipes._base import Recipe
from volumediff.samples.input_guard import InputGuard
from volumediff.samples.label_names import label_names_of
from volumediff.samples.sources import cases_of, preprocessing, simulated
from volumediff.samples.statistics import Statistics
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import POPULATION
from volumediff.storage import checkpoint
from volumediff.tasks import Task, load_task

__all__ = ["Trained", "device_of", "load_trained"]

Which = Literal["best", "last"]


def device_of(name: str) -> torch.device:
    """The device of a name; `auto` takes CUDA where there is some.

    Raises:
        UsageError: no such device here, or one without float64
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] == "mps":
        raise UsageError(
            f"device '{name}': not supported, since noise levels and statistics are computed in "
            "float64, which Apple's GPUs do not have; use cpu, or auto."
        )
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and started() > 1:
            # each process of a launch has a card of its own, as far as there are enough
            device = torch.device("cuda", local_rank() % torch.cuda.device_count())
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"device '{name}': not usable here ({reason}); use auto, or see volumediff doctor."
        ) from None
    return device


def load_trained(
    run: Path | str,
    *,
    which: Which = "best",
    device: str = "auto",
    memory: Sequence[str] = (),
    read: Sequence[str] = (),
    domain: int = 1,
) -> "Trained":
    """Loads a run, whatever its task; `Trained` says what it is good for.

    Arguments:
        run: its folder
        which: the checkpoint selected on validation, or the newest
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        memory: `key=value` overrides for the memory policy, in place of the training's
        read: the same for the policy that files are read by
        domain: processes of the launch that share each volume; the first of them returns, the
            others help it and end the program when it ends

    Raises:
        UsageError: no run, no checkpoint of this kind, no such device, float16 on a CPU, or a
            launch of no multiple of `domain`
        DataError: the run is damaged
    """
    run = Path(run)
    words = [*(f"memory.{word}" for word in memory), *(f"data.read.{word}" for word in read)]
    found = checkpoint.find(run, which)
    mesh = shared_mesh(domain)
    with sharing(mesh.domain):
        task = load_task(run, which=which, overrides=words, found=found)
    task.freeze()
    assert found is not None, "load_task has just read it"
    place = device_of(device)
    if place.type == "cpu" and task.config.memory.dtype == "float16":
        raise UsageError(
            f"{run}: computes in float16, many times slower than float32 on a CPU; give "
            "dtype=float32 as the memory policy, or use a GPU."
        )
    task.module.to(place)
    if mesh.domain.size > 1:
        join(task.module, mesh.domain, place)
    return Trained(
        run=run,
        config=_shared_by(task.config, domain),
        task=task,
        statistics=Statistics.load(run),
        checkpoint=found.path.name,
        digest=found.digest,
        device=place,
    )


def _shared_by(config: RunConfig, domain: int) -> RunConfig:
    """The configuration, with as many processes to a volume as there are now."""
    processes = config.processes.model_copy(update={"domain": domain})
    return config.model_copy(update={"processes": processes})


@dataclass(frozen=True, eq=False)
class Trained:
    """A run with its model on a device.

    Arguments:
        run: folder
        config: resolved configuration
        task: with averaged weights, in evaluation mode
        statistics: numbers of the training split that conditions need
        checkpoint: name of the checkpoint, such as best-00010000
        digest: SHA-256 of its weights
        device: where its module is
    """

    run: Path
    config: RunConfig
    task: Task
    statistics: Statistics
    checkpoint: str
    digest: str
    device: torch.device

    def moved(self, root: Path | str | None) -> "Trained":
        """The run with its data in another folder."""
        data = self.config.data.model_copy(update={"root": None if root is None else str(root)})
        return replace(self, config=self.config.model_copy(update={"data": data}))

    @property
    def model(self) -> nn.Module:
        """What the task made, such as a `Model` or a `Reconstructor`."""
        return self.task.result

    @property
    def diffusion(self) -> Model:
        """The diffusion model.

        Raises:
            UsageError: the run trains something else
        """
        found = self.task.lend(Model)
        if found is None:
            raise UsageError(
                f"{self.run}: trains {self.task.noun}, expected the run of a diffusion model."
            )
        return found

    @cached_property
    def label_names(self) -> Mapping[int, str]:
        """What the labels of the run are called, as far as its data set named them."""
        return label_names_of(self.run)

    @property
    def recipe(self) -> Recipe:
        """What the run's samples are."""
        return self.task.recipe

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """From files to what the model was trained on."""
        return preprocessing(self.config.data, self.run)

    @cached_property
    def guard(self) -> InputGuard:
        """What the run knows of its inputs.

        Raises:
            DataError: a record of the run is damaged
        """
        return InputGuard.of_run(self.run, self.config.data.channels)

    @property
    def channels(self) -> int:
        """Channels that a volume must have."""
        return self.config.data.channel_count

    def image_names(
        self, given: Sequence[str] | None, *, of: Sequence[int] | None = None
    ) -> Sequence[str] | None:
        """Names of a volume's images, in the order of the model's channels.

        Arguments:
            given: as they are called in the data; None takes the names of the run
            of: numbers of the channels that are meant; None for all

        Raises:
            UsageError: another number of them, or those of the run in another order
        """
        own = self.config.data.channels
        if own is not None and of is not None:
            own = tuple(own[i] for i in of)
        if given is None:
            return own
        count = self.channels if of is None else len(of)
        if len(given) != count:
            raise UsageError(
                f"channels {','.join(given)}: expected the names of {count} images, as many as "
                f"{self.run} {'was trained with' if of is None else 'takes'}, got {len(given)}."
            )
        if own is not None and set(given) == set(own) and tuple(given) != tuple(own):
            raise UsageError(
                f"channels {','.join(given)}: expected the order of {self.run}, "
                f"{','.join(own)}; leave the channels out."
            )
        return given

    def localizes(self) -> None:
        """Raises UsageError, with the task's reason, where the run does not localize lesions."""
        self._unless(self.task.refusals.localize)

    def segments(self) -> None:
        """Raises UsageError, with the task's reason, where the run does not segment."""
        self._unless(self.task.refusals.segment)

    def samples(self) -> None:
        """Raises UsageError, with the task's reason, where the run draws no volumes."""
        self._unless(self.task.refusals.sample)

    def translates(self) -> None:
        """Raises UsageError, with the task's reason, where the run translates no channels."""
        self._unless(self.task.refusals.translate)

    def _unless(self, reason: str | None) -> None:
        if reason is not None:
            raise UsageError(f"{self.run}: {reason}")

    def condition(self, attributes: Mapping[str, str | float]) -> Condition:
        """The condition of the denoiser for a whole volume; methods choose the class themselves.

        Raises:
            UsageError: an attribute that the run was trained with is missing
        """
        image, atlas = None, self.statistics.atlas
        if self.recipe.atlas and atlas is not None:
            with torch.no_grad():
                image = self.model.encode_image(atlas[None].to(self.device))
        spacing = self.config.data.preprocessing.spacing()
        scalars = self.statistics.standardised(with_spacing(attributes, spacing))
        told = None if scalars is None else scalars[None].float().to(self.device)
        return Condition(image=image, scalars=told)

    @cached_property
    def _population(self) -> Population | None:
        return simulated(self.config.data) if self.config.data.root == POPULATION else None

    @cached_property
    def _cases(self) -> dict[str, Case]:
        return {case.id: case for case in cases_of(self.config.data)}

    @property
    def names_volumes(self) -> bool:
        """Whether the run knows its volumes by name: a model file holds hashes alone, and imported
        weights come without any."""
        return (self.run / "splits.json").is_file()

    def cases(self, part: str) -> list[Case]:
        """Healthy cases of a part of the run's split: train, validation, calibration or test.

        Raises:
            UsageError: the run does not know them, or its data are not where they were
        """
        if not self.names_volumes:
            raise UsageError(
                f"{self.run}: its {part} volumes are needed, and not known: its weights were "
                "imported, or come from a model file; calibrate on healthy volumes of your own, "
                "or choose a method that needs nothing else."
            )
        split = Split.load(self.run / "splits.json")
        wanted = getattr(split, part)
        try:
            cases = self._cases
        except DataError as error:
            raise UsageError(
                f"{self.run}: its data are needed and not reachable ({error}); give their folder "
                "as data when the run is loaded."
            ) from None
        missing = [name for name in wanted if name not in cases]
        if missing:
            raise UsageError(
                f"{self.run}: case {missing[0]} of its split is not in {self.config.data.root}; "
                "give the folder with the run's data as data when the run is loaded."
            )
        return [cases[name] for name in wanted if self.recipe.healthy(cases[name].attributes)]

    def example(self, case: Case) -> Example:
        """A case of the run's data as the methods take it, on the model's device."""
        if self._population is not None:
            subject = self._population.subject(int(case.id.rpartition("-")[2]))
            x, foreground, truth = subject.x, subject.foreground, None
            spacing = self._population.spacing_mm
        else:
            prepared = self.preprocessing.prepare(case)
            x, foreground, spacing = prepared.x, prepared.foreground, prepared.spacing_mm
            truth = None if prepared.label is None else (prepared.label > 0)[None]
        condition = self.condition(case.attributes)
        return self.placed(x, foreground, spacing, condition=condition, truth=truth)

    def placed(
        self,
        x: Tensor,
        foreground: Tensor,
        spacing_mm: tuple[float, float, float],
        *,
        condition: Condition,
        truth: Tensor | None = None,
    ) -> Example:
        """One volume (c, d, h, w) as an example on the model's device."""
        return Example(
            x[None].to(self.device),
            foreground[None].to(self.device),
            spacing_mm,
            condition,
            None if truth is None else truth.to(self.device),
        )

    def examples(self, part: str, *, limit: int | None = None) -> Iterator[Example]:
        """The healthy examples of a part of the split, one at a time; marked lesions are none."""
        for case in self.cases(part)[:limit]:
            example = self.example(case)
            if not example.lesioned:
                yield example
