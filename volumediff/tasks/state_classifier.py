"""A classifier of the noisy states of a diffusion run, for guidance and saliency.

States are the same where everything is that makes them of files: preprocessing, space,
normalisation, schedule, noise. The run keeps a copy of all of it (RUN/borrowed/states, and the
autoencoder of a latent space) and stands alone; the weights of the denoiser are no part of it, so
that a classifier stays good for later checkpoints of its run.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.classification import ClassPosterior, StateClassifier
from volumediff.compatibility.training import classification_problem, states_problem
from volumediff.condition import HEALTHY
from volumediff.config import build
from volumediff.errors import UsageError
from volumediff.kernels._base import Kernel
from volumediff.model import Model
from volumediff.noise import Noise
from volumediff.recipes._base import Recipe
from volumediff.samples.landmarks import NAME as LANDMARKS
from volumediff.samples.landmarks import keep_landmarks, load_landmarks
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Component, ForRun
from volumediff.shapes import Shape
from volumediff.spaces import StateSpace
from volumediff.storage.digests import sha256
from volumediff.tasks._agreement import agree
from volumediff.tasks._base import Stage, Task
from volumediff.tasks._borrowing import borrowed, keep, keep_copy, kept, source_of, take
from volumediff.tasks._encoders import IMAGE, STATES, encoder_paths, space_of
from volumediff.tasks._recipes import recipe_of
from volumediff.tasks._refusals import Refusals

__all__ = ["StateClassifierConfig", "StateClassifierTask", "states_digest", "states_facts"]

NAME = "states"
WHERE = "classifier.of"
PARTS = ("space", "kernel", "noise")
LEVEL = 0.6  # the planner's pass: any time will do


class StateClassifierConfig(RunConfig):
    """Keys of a classifier of noised volumes. Space, kernel, noise and data are those of the
    run that it is for, and need not be written.

    Arguments:
        classifier: architecture, and `of`, the folder of the diffusion run
        recipe: classes that are learned
        space: that of the diffusion run
        kernel: that of the diffusion run
        noise: that of the diffusion run
        times: density of the training times
    """

    classifier: ForRun
    recipe: Component
    space: Component | None = None
    kernel: Component | None = None
    noise: Component | None = None
    times: Component = "uniform"

    @model_validator(mode="after")
    def _whole(self) -> "StateClassifierConfig":
        if self.crop is not None:
            raise ValueError("takes crop: null with a classifier: its class is the volume's")
        return self

    @property
    def of(self) -> Path:
        """The diffusion run."""
        return Path(self.classifier["of"])

    def borrows(self) -> dict[str, Path]:
        """The diffusion run, and the autoencoder of its states."""
        inner = {f"space.{key}": Path(path) for key, path in encoder_paths(self.space).items()}
        return {**inner, WHERE: self.of}


class StateClassifierTask(Task):
    """A classifier of the noisy states of a diffusion run.

    Arguments:
        config: of the run
        module: the classifier with space, kernel and noise of that run
        recipe: gives the classes
        digest: SHA-256 of the autoencoder's weights in a latent space
        frozen: this autoencoder
    """

    schema = StateClassifierConfig
    noun = "a classifier"
    fits_intensities = False

    def __init__(
        self,
        config: RunConfig,
        module: StateClassifier,
        *,
        recipe: Recipe,
        digest: str = "",
        frozen: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__(
            config, module, main="classifier", recipe=recipe, digest=digest, frozen=frozen
        )
        self.classifier = module

    @classmethod
    def resolve(cls, config: RunConfig) -> RunConfig:
        """Space, kernel, noise and, where no data are named, the data of the diffusion run."""
        if config.space is not None and config.kernel is not None and config.noise is not None:
            return config
        source = _source(config)
        parts = {n: getattr(source, n) for n in PARTS if getattr(config, n) is None}
        if config.data.root is None:
            parts["data"] = source.data
        return config.model_copy(update=parts)

    @classmethod
    def keep(cls, config: RunConfig, run: Path) -> None:
        if kept(run, NAME) is not None:
            return
        of = config.of
        source = _source(config)
        pairs = {name: (getattr(config, name), getattr(source, name)) for name in PARTS}
        pairs["data.preprocessing"] = config.data.preprocessing, source.data.preprocessing
        pairs["data.channels"] = config.data.channels, source.data.channels
        agree(pairs, where=WHERE, of=of, hint="leave it out, it is taken from that run")
        model = borrowed(of, where=WHERE, run=run).task.lend(Model)
        if model is None or states_problem(model.recipe):
            raise UsageError(
                f"{WHERE} = {of}: expected a model of whole volumes (recipe healthy or "
                "class_conditional), whose states are those of volumes."
            )
        for name in (STATES, IMAGE):
            keep_copy(run, name, of=of)
        keep_landmarks(run, of)
        keep(run, NAME, of=of, tensors=_normalisation(model.space), where=WHERE)

    @classmethod
    def build(cls, config: RunConfig, run: Path | None) -> "StateClassifierTask":
        recipe = recipe_of(config)
        problem = classification_problem(recipe)
        if problem is not None:
            raise UsageError(f"{problem}, got {config.recipe}.")
        space, encoders = space_of(config.space, run, channels=config.data.channels)
        spec = {n: v for n, v in config.classifier.items() if n != "of"}
        k = space.channels(config.data.channel_count)
        classifier = build("classifier", spec, in_channels=k, classes=recipe.classes)
        module = StateClassifier(
            space,
            build("kernel", config.kernel),
            classifier,
            dtype=config.memory.torch_dtype,
            time_density=build("times", config.times),
            noise_field=build("noise", config.noise),
        )
        states = kept(run, NAME)
        if states is not None:
            take(space, states)
        config.memory.apply(module)
        return cls(config, module, recipe=recipe, digest=encoders.digest, frozen=encoders.frozen)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"classifier": self.classifier.classifier}

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        return self.classifier.loss(batch)

    def grid(self, shape: Shape) -> Shape:
        return self.classifier.space.grid(shape)

    def planes(self, shape: Shape) -> int:
        return shape[0] if self.frozen else self.grid(shape)[0]

    @torch.no_grad()
    def use(self, batch: Batch, *, stage: Stage) -> None:
        """What guidance asks of a classifier: a gradient in the state."""
        module = self.classifier
        with stage("encode"):
            z = module.space.encode(batch.x)
        posterior = ClassPosterior(
            module.log_probability, module.kernel.schedule, module.classifier.classes, ""
        )
        with stage("guide"):
            t = torch.full((len(z),), LEVEL, dtype=torch.float64, device=z.device)
            posterior.gradient(z, t, label=HEALTHY)

    @property
    def refusals(self) -> Refusals:
        reason = (
            "trains a classifier, expected the run of a diffusion model or of an autoencoder; "
            "give the classifier beside such a run."
        )
        return Refusals(reason, reason, reason)


def _source(config: RunConfig) -> RunConfig:
    """The configuration of the diffusion run.

    Raises:
        UsageError: no such run, or one without states
    """
    source = source_of(config.of, where=WHERE)
    if not set(PARTS) <= set(type(source).model_fields):
        raise UsageError(f"{WHERE} = {config.of}: expected the run of a diffusion model.")
    return source


def states_facts(run: Path) -> Mapping[str, Any]:
    """The diffusion run, checkpoint and weights that a classifier was trained for.

    Raises:
        DataError: they are damaged
    """
    states = kept(run, NAME)
    assert states is not None, "every classifier's run keeps them"
    return states.facts.model_dump()


def states_digest(
    config: RunConfig, run: Path, *, space: StateSpace, kernel: Kernel, noise: Noise
) -> str:
    """SHA-256 of everything that makes states of files.

    Arguments:
        config: of the run
        run: its folder, with intensities that are fitted
        space: with its normalisation
        kernel: of the run; its schedule counts, not what the network predicts
        noise: what volumes are corrupted with
    """
    section = config.data.preprocessing.model_dump(mode="json")
    described = [
        json.dumps([section, config.data.channels, _described(config.space)], sort_keys=True),
        type(kernel).__name__,
        repr(kernel.schedule),
        repr(noise),
    ]
    if (run / LANDMARKS).is_file():
        described.append(repr(load_landmarks(run)))
    parts: list[str | bytes] = ["\n".join(described)]
    for name, tensor in sorted(space.state_dict().items()):
        parts += [name, tensor.detach().to("cpu").contiguous().numpy().tobytes()]
    return sha256(*parts)


def _described(spec: Any) -> Any:
    """A space without the place of its autoencoder, whose weights are counted themselves."""
    if not isinstance(spec, Mapping):
        return {"name": spec}
    return {n: _described(v) if n == "inner" else v for n, v in spec.items() if n != "autoencoder"}


def _normalisation(space: StateSpace) -> dict[str, Tensor]:
    names = ("shift", "scale")
    return {n: t for n, t in space.state_dict().items() if n.rpartition(".")[2] in names}
