"""Auxiliary models of other runs: a classifier, a residual segmenter, an autoencoder, a whole run.

The components of a method declare what they borrow (`volumediff.component.Loan`), and name its run
or leave it to an option that holds for the whole method. `Borrowed` is what `Component.bind` asks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from volumediff.anomaly.member import LENDER
from volumediff.anomaly.methods._base import Method
from volumediff.anomaly.methods.lent import AUTOENCODER
from volumediff.anomaly.methods.lent import BorrowedAutoencoder as BorrowedAutoencoder
from volumediff.autoencoders import Reconstructor
from volumediff.classification import CLASSIFIER, ClassPosterior, StateClassifier
from volumediff.component import Request
from volumediff.config import build
from volumediff.errors import DataError, UsageError
from volumediff.residual_segmentation import SEGMENTER, ResidualSegmentation, VoxelPosterior
from volumediff.runs.lent_run import lent_run
from volumediff.runs.trained import Trained, load_trained
from volumediff.samples.seen_record import seen_by
from volumediff.settings.run_config import saved_config
from volumediff.storage import checkpoint
from volumediff.tasks import load_task, task_of
from volumediff.tasks.residual_segmenter import ResidualSegmenterTask, supervision_of
from volumediff.tasks.state_classifier import states_digest, states_facts

__all__ = ["Borrowed", "facts_of"]

Runs = Mapping[str, Path | str | None]


@dataclass(frozen=True, eq=False)
class Borrowed:
    """What the components of a method borrow from other runs; each of them is read once.

    Arguments:
        trained: the run that the method works with
        runs: kind of model -> folder of the run, for components that name none themselves
    """

    trained: Trained
    runs: Runs = field(default_factory=dict)
    _read: dict[tuple[str, str], Any] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, request: Request) -> Any:
        """What a request gets; None where no run is named, or none can have it.

        Raises:
            UsageError: the folder holds no such run, or one that does not suit
            DataError: the run is damaged
        """
        if request.lender is not None:  # the component works with another run altogether
            return Borrowed(request.lender.trained)(replace(request, lender=None))
        kind = request.loan.kind
        run = request.run or self.runs.get(kind)
        if run is None or kind not in LOADERS:
            return None
        joined = " " if request.name == request.loan.option else " = "
        return self.load(kind, run, where=f"{request.name}{joined}{run}")

    def load(self, kind: str, run: Path | str, *, where: str | None = None) -> Any:
        """The model of another run, as components take it.

        Arguments:
            kind: `classifier`, `residual_segmenter`, `autoencoder` or `run`
            run: its folder
            where: what named the folder, for messages

        Raises:
            UsageError: the folder holds no such run, or one that does not suit
            DataError: the run is damaged
        """
        if (kind, str(run)) not in self._read:
            made = LOADERS[kind](where or str(run), Path(run), self.trained)
            self._read[kind, str(run)] = made
        return self._read[kind, str(run)]

    def check_asked(self, method: Method, name: str) -> None:
        """Whether the method borrows what there are options for.

        Arguments:
            method: the method
            name: of it, for the message

        Raises:
            UsageError: a run was given that no component takes
        """
        taken = {request.loan.kind for request in method.requests()}
        for kind, run in self.runs.items():
            if run is not None and kind not in taken:
                raise UsageError(f"{kind}: the method '{name}' uses none; leave it out.")


def facts_of(method: Method) -> dict[str, Any]:
    """Where what a method borrows comes from, by the place of the component, for records."""
    return {
        f"{request.place}.{request.field}".removeprefix("."): dict(request.value.facts)
        for request in method.requests()
        if request.value is not None and request.value.facts
    }


def _classifier(where: str, run: Path, trained: Trained) -> ClassPosterior:
    """A classifier of the noisy states of the run, in float32."""
    # Gradients are multiplied by a large scale: no rounding of half precision.
    found = checkpoint.find(run, "best")
    task = load_task(run, overrides=["memory.dtype=float32"], found=found)
    config, module = task.config, task.lend(StateClassifier)
    if module is None:
        raise UsageError(
            f"{where}: expected the run of a classifier; train one with volumediff train "
            f"configs/classifiers/encoder_64.yaml classifier.of={trained.run}"
        )
    model = trained.diffusion
    theirs = states_digest(
        config, run, space=module.space, kernel=module.kernel, noise=module.noise_field
    )
    ours = states_digest(
        trained.config,
        trained.run,
        space=model.space,
        kernel=model.kernel,
        noise=model.noise_field,
    )
    source = states_facts(run)
    if theirs != ours:
        raise UsageError(
            f"{where}: was trained on the states of {source['run']}, which are not those of "
            f"{trained.name} (preprocessing, space, normalisation, schedule or noise); train one "
            f"with classifier.of={trained.run}."
        )
    assert found is not None, "load_task has just read it"
    module.requires_grad_(False).to(trained.device)
    return ClassPosterior(
        module.log_probability,
        module.kernel.schedule,
        module.classifier.classes,
        found.digest,
        seen_by(run),
        {**_facts(run, found), "of": dict(source)},
    )


def _residual_segmenter(where: str, run: Path, trained: Trained) -> VoxelPosterior:
    """A residual segmenter that was trained with the weights of the run."""
    config = saved_config(run)
    if not issubclass(task_of(config), ResidualSegmenterTask):
        raise UsageError(
            f"{where}: expected the run of a residual segmenter; train one with volumediff train "
            f"configs/residual_segmenters/siamese_64.yaml residual_segmenter.of={trained.run}"
        )
    found = checkpoint.find(run, "best")
    if found is None:
        raise UsageError(f"{where}: has no checkpoint yet; train it further.")
    if found.state["borrowed"] != trained.digest:
        raise UsageError(
            f"{where}: was trained for weights of {config.of} that are not those of "
            f"{trained.run}/checkpoints/{trained.checkpoint}; train one with "
            f"residual_segmenter.of={trained.run}."
        )
    spec = {n: v for n, v in config.residual_segmenter.items() if n != "of"}
    residual_segmenter = build("residual_segmenter", spec, channels=config.data.channel_count)
    module = ResidualSegmentation(
        trained.diffusion, residual_segmenter, dtype=config.memory.torch_dtype
    )
    prefix = "residual_segmenter."
    tensors = {n.removeprefix(prefix): t for n, t in found.tensors("ema").items()}
    try:
        residual_segmenter.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{found.path}: does not fit {run}/config.yaml ({reason}).") from None
    config.memory.apply(residual_segmenter)
    config.memory.freeze(residual_segmenter.to(trained.device).eval())
    return VoxelPosterior(
        module.probability,
        supervision_of(build("recipe", config.recipe)),
        found.digest,
        seen_by(run),
        _facts(run, found),
    )


def _autoencoder(where: str, run: Path, trained: Trained) -> BorrowedAutoencoder:
    """An autoencoder that sees the same volumes as the run."""
    other = load_trained(run, device=str(trained.device))
    model = other.task.lend(Reconstructor)
    if model is None:
        raise UsageError(
            f"{where}: expected the run of an autoencoder, got one that trains {other.task.noun}."
        )
    pairs = [(other.channels, trained.channels)]
    pairs.append((repr(other.preprocessing), repr(trained.preprocessing)))
    for theirs, ours in pairs:
        if theirs != ours:
            raise UsageError(
                f"{where}: expected a run on the same volumes as {trained.name}, with {ours}, got "
                f"{theirs}; train it with the same data section."
            )
    found = checkpoint.find(run, "best")
    assert found is not None, "load_trained has just read it"
    return BorrowedAutoencoder(model, other.digest, seen_by(run), _facts(run, found))


def _facts(run: Path, found: checkpoint.Checkpoint) -> dict[str, Any]:
    return {
        "run": str(run.resolve()),
        "checkpoint": found.path.name,
        "weights_sha256": found.digest,
    }


LOADERS: dict[str, Callable[[str, Path, Trained], Any]] = {
    CLASSIFIER.kind: _classifier,
    SEGMENTER.kind: _residual_segmenter,
    AUTOENCODER.kind: _autoencoder,
    LENDER.kind: lent_run,
}
