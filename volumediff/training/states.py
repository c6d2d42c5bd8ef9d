"""The states of a diffusion run, kept in the run of its classifier, which then stands alone.

RUN/states/ holds the normalisation of the state space and what it came from, RUN/autoencoder the
autoencoder of a latent space. States are the same where everything is that makes them of files:
preprocessing, space, normalisation, schedule, noise. The weights of the denoiser are no part of
it, so that a classifier stays good for later checkpoints of its run.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from volumediff.compatibility import states_problem
from volumediff.errors import DataError, UsageError
from volumediff.kernels._base import Kernel
from volumediff.model import Model
from volumediff.noise import Noise
from volumediff.spaces import StateSpace
from volumediff.storage import checkpoint
from volumediff.storage.folder import Damaged, publish, verify
from volumediff.training.landmarks import NAME as LANDMARKS
from volumediff.training.landmarks import keep_landmarks, load_landmarks
from volumediff.training.run_config import RunConfig, of_run, saved_config

__all__ = ["adopt_states", "check_source", "keep_states", "states_digest", "states_facts"]

FOLDER = "states"


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
    problem = states_problem(model.recipe)
    if problem is not None:
        raise UsageError(f"classifier.of = {of}: {problem}")
    if (of / "autoencoder").is_dir() and not (run / "autoencoder").is_dir():
        names = ("config.yaml", "weights.safetensors")
        files = {name: (of / "autoencoder" / name).read_bytes() for name in names}
        publish(
            run / "autoencoder", {n: lambda file, b=b: file.write(b) for n, b in files.items()}
        )
    keep_landmarks(run, of)
    found = checkpoint.find(of, "best")
    assert found is not None, "it was just loaded"
    facts = {
        "run": str(of.resolve()),
        "checkpoint": found.path.name,
        "weights_sha256": found.digest,
    }
    space = safetensors.torch.save(_normalisation(model.space))
    publish(
        run / FOLDER,
        {
            "facts.json": lambda file: file.write(json.dumps(facts, indent=1).encode()),
            "space.safetensors": lambda file: file.write(space),
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
    _verified(folder)
    tensors = safetensors.torch.load_file(folder / "space.safetensors")
    space.load_state_dict({**space.state_dict(), **tensors})


def states_facts(run: Path) -> Mapping[str, Any]:
    """The diffusion run, checkpoint and weights that a classifier was trained for.

    Raises:
        DataError: they are damaged
    """
    _verified(run / FOLDER)
    return json.loads((run / FOLDER / "facts.json").read_bytes())


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
    found = hashlib.sha256("\n".join(described).encode())
    for name, tensor in sorted(space.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().to("cpu").contiguous().numpy().tobytes())
    return found.hexdigest()


def _described(spec: Any) -> Any:
    """A space without the place of its autoencoder, whose weights are counted themselves."""
    if not isinstance(spec, Mapping):
        return {"name": spec}
    return {n: _described(v) if n == "inner" else v for n, v in spec.items() if n != "autoencoder"}


def _normalisation(space: StateSpace) -> dict[str, Tensor]:
    names = ("shift", "scale")
    state = space.state_dict()
    return {n: t.cpu().contiguous() for n, t in state.items() if n.rpartition(".")[2] in names}


def _verified(folder: Path) -> None:
    try:
        verify(folder)
    except Damaged as error:
        raise DataError(f"{folder}: damaged: {error}; restore it from a backup.") from None
