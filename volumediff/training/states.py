"""The states of a diffusion run, kept in the run of its classifier, which then stands alone.

RUN/states/ holds the normalisation of the state space and what it came from, RUN/autoencoder the
autoencoder of a latent space. States are the same where everything is that makes them of files:
preprocessing, space, normalisation, schedule, noise. The weights of the denoiser are no part of
it, so that a classifier stays good for later checkpoints of its run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from volumediff.errors import DataError, UsageError
from volumediff.kernels._base import Kernel
from volumediff.model import Model
from volumediff.noise import Noise
from volumediff.spaces import StateSpace
from volumediff.storage import checkpoint
from volumediff.storage.digests import sha256
from volumediff.storage.folder import publish, verified
from volumediff.storage.records import Record, parse_file
from volumediff.storage.tensors import load_plain, stream
from volumediff.training.landmarks import NAME as LANDMARKS
from volumediff.training.landmarks import keep_landmarks, load_landmarks
from volumediff.training.run_config import RunConfig, of_run, saved_config

__all__ = ["adopt_states", "check_source", "keep_states", "states_digest", "states_facts"]

FOLDER = "states"
ADVICE = "restore the folder from a backup"


class Facts(Record):
    """facts.json: the diffusion run, its checkpoint and weights that a classifier is for."""

    run: str
    checkpoint: str
    weights_sha256: str


def check_source(config: RunConfig) -> Path:
    """The diffusion run that a classifier is about to be trained for.

    Raises:
        UsageError: no such run, not trained yet, or other states than configured
    """
    of = of_run(config)
    theirs = saved_config(of)
    if checkpoint.find(of, "best") is None:
        raise UsageError(f"classifier.of = {of}: has no checkpoint yet; train it first.")
    pairs = {name: (getattr(config, name), getattr(theirs, name)) for name in PARTS}
    pairs["data.preprocessing"] = config.data.preprocessing, theirs.data.preprocessing
    pairs["data.channels"] = config.data.channels, theirs.data.channels
    for name, (ours, others) in pairs.items():
        if ours != others:
            raise UsageError(
                f"{name}: expected that of classifier.of = {of}, {others}, got {ours}; leave "
                f"{name.split('.')[0]} out, it is taken from there."
            )
    return of


PARTS = ("space", "kernel", "noise")


def keep_states(run: Path, of: Path, model: Model) -> None:
    """Copies what makes the states of a diffusion run, once.

    Arguments:
        run: folder of the classifier's run
        of: folder of the diffusion run
        model: its trained model

    Raises:
        UsageError: a model whose states are not those of volumes
    """
    if not model.recipe.whole:
        raise UsageError(
            f"classifier.of = {of}: expected a model of whole volumes (recipe healthy or "
            f"class_conditional), got the recipe {type(model.recipe).__name__.lower()}."
        )
    if (of / "autoencoder").is_dir() and not (run / "autoencoder").is_dir():
        names, folder = ("config.yaml", "weights.safetensors"), verified(of / "autoencoder")
        publish(run / "autoencoder", {name: (folder / name).read_bytes() for name in names})
    keep_landmarks(run, of)
    found = checkpoint.find(of, "best")
    assert found is not None, "it was just loaded"
    facts = {
        "run": str(of.resolve()),
        "checkpoint": found.path.name,
        "weights_sha256": found.digest,
    }
    space = _normalisation(model.space)
    publish(
        run / FOLDER,
        {
            "facts.json": json.dumps(facts, indent=1).encode(),
            "space.safetensors": lambda file: stream(file, space),
        },
    )


def adopt_states(space: StateSpace, run: Path) -> None:
    """Gives a space the normalisation that the run keeps, where it keeps one.

    Raises:
        DataError: it is damaged
    """
    folder = run / FOLDER
    if not folder.is_dir():
        return
    tensors, _ = load_plain(verified(folder) / "space.safetensors", advice=ADVICE)
    try:
        space.load_state_dict({**space.state_dict(), **tensors})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: does not fit the space ({reason}); {ADVICE}.") from None


def states_facts(run: Path) -> Mapping[str, Any]:
    """The diffusion run, checkpoint and weights that a classifier was trained for.

    Raises:
        DataError: they are damaged
    """
    folder = verified(run / FOLDER)
    return parse_file(folder / "facts.json", Facts, advice=ADVICE).model_dump()


def states_digest(
    config: RunConfig, run: Path, *, space: StateSpace, kernel: Kernel, field: Noise
) -> str:
    """SHA-256 of everything that makes states of files.

    Arguments:
        config: of the run
        run: its folder, with intensities that are fitted
        space: with its normalisation
        kernel: of the run; its schedule counts, not what the network predicts
        field: the noise
    """
    section = config.data.preprocessing.model_dump(mode="json")
    described = [
        json.dumps([section, config.data.channels, _described(config.space)], sort_keys=True),
        type(kernel).__name__,
        repr(kernel.schedule),
        repr(field),
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
    state = space.state_dict()
    return {n: t.cpu().contiguous() for n, t in state.items() if n.rpartition(".")[2] in names}
