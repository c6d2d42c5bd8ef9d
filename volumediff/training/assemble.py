"""From a run's configuration to its model, and from a run's folder to the trained model.

What follows from other parts is derived here and never configured: channels from the data and the
space, classes and conditions from the recipe. Building needs no data and works on the meta device.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch

from volumediff.autoencoders import Autoencoder, Reconstructor
from volumediff.config import build, component, config_path, name_of
from volumediff.errors import DataError, UsageError
from volumediff.kernels._base import Kernel
from volumediff.model import Model
from volumediff.noise import Gaussian
from volumediff.randomness import key
from volumediff.recipes._base import Recipe
from volumediff.spaces import StateSpace
from volumediff.training import checkpoint
from volumediff.training.folder import Damaged, publish, sha256, verify
from volumediff.training.run_config import RunConfig, load_run_config, saved_config
from volumediff.training.task import Compression, Diffusion, Task

__all__ = ["build_recipe", "build_task", "channels_of", "keep_autoencoder", "load_run"]


def load_run(
    run: Path,
    *,
    which: Literal["best", "last"] = "best",
    weights: Literal["ema", "weights"] = "ema",
    overrides: Sequence[str] = (),
) -> tuple[RunConfig, Model | Reconstructor]:
    """Configuration and trained model of a run, verified, on the CPU, in evaluation mode.

    Arguments:
        which: the checkpoint selected on validation, or the newest
        weights: the averaged weights, or those of the last step
        overrides: `a.b=c` words for its configuration, such as those of its memory policy

    Raises:
        UsageError: no run, or no checkpoint of this kind yet
        DataError: the checkpoint is damaged or does not fit its configuration
    """
    config = saved_config(run, overrides)
    found = checkpoint.find(run, which)
    if found is None:
        raise UsageError(
            f"{run}: has no '{which}' checkpoint yet; train it further, or ask for the other one."
        )
    task = build_task(config, run=run)
    if found.state["autoencoder"] != task.digest:
        raise DataError(
            f"{run}/autoencoder is not the one that this model was trained with; restore the run "
            "from a backup."
        )
    try:
        task.load(found.tensors(weights))
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{found.path}: does not fit {run}/config.yaml ({reason}).") from None
    return config, task.module.eval()


def channels_of(config: RunConfig) -> int:
    """Channels of the data's volumes; one unless the configuration names them."""
    return len(config.data.channels) if config.data.channels else 1


def build_recipe(config: RunConfig) -> Recipe:
    """The recipe of a configuration."""
    return build("recipe", config.recipe)


def build_task(config: RunConfig, *, run: Path | None = None) -> Task:
    """What the configuration trains, with fresh weights that follow from the seed.

    Arguments:
        run: the run's folder, whose copy of the autoencoder a latent space takes; without it, an
            autoencoder that is not trained yet is built from its shipped configuration

    Raises:
        UsageError: parts do not fit; one line that names the key
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(config.seed, "weights"))
        if config.autoencoder is not None:
            return _compression(config, run)
        return _diffusion(config, run)


def _compression(config: RunConfig, run: Path | None) -> Compression:
    """An autoencoder, with the size of the volumes and the inner autoencoder if it takes any."""
    spec = config.autoencoder
    parts = {"name": spec} if isinstance(spec, str) else dict(spec or {})
    takes = inspect.signature(component("autoencoder", str(parts.get("name")))).parameters
    derived: dict[str, Any] = {"channels": channels_of(config)}
    digest = ""
    if "shape" in takes:
        shape = config.crop or config.data.preprocessing.shape
        if shape is None:
            raise UsageError(
                "data.preprocessing.shape: expected the size of the volumes, which the latent "
                "vector of this autoencoder stands for, got null; set it, for example [64,64,64]."
            )
        derived["shape"] = shape
    if "autoencoder" in takes:
        path = str(parts.pop("autoencoder", ""))
        derived["autoencoder"], digest = _encoder(path, run, "autoencoder")
    autoencoder = build("autoencoder", parts, **derived)
    config.memory.apply(autoencoder)
    return Compression(autoencoder, dtype=config.memory.torch_dtype, digest=digest)


def _diffusion(config: RunConfig, run: Path | None) -> Task:
    recipe, c = build_recipe(config), channels_of(config)
    encoders: list[tuple[Autoencoder, str]] = []
    space = _space(config.space, run, "space", encoders)
    if recipe.exact and not space.exact:
        raise UsageError(
            f"recipe: expected a space of voxels or wavelets for {name_of(type(recipe))}, got "
            "latents, whose autoencoder was made for volumes and not for maps; use voxel, wavelet "
            "or slices."
        )
    try:
        k = space.channels(recipe.channels(c))
        image_channels = sum(space.channels(n) for n in recipe.image_channels(c))
        image_channels += recipe.shows_mask
    except ValueError as error:
        raise UsageError(f"space: {error}") from None
    references = {"reference_channels": k} if recipe.reference else {}
    network = build(
        "network",
        config.network,
        in_channels=k,
        out_channels=k,
        image_channels=image_channels,
        classes=recipe.classes,
        scalars=len(recipe.scalars),
        **references,
    )
    kernel = build("kernel", config.kernel)
    _check_kernel(recipe, kernel)
    field = build("noise", config.noise)
    if encoders and not isinstance(field, Gaussian):
        raise UsageError(
            f"noise: expected gaussian in a latent space, got {type(field).__name__.lower()}; the "
            "latents are made once, and noise of the volume cannot be told from theirs. Use voxel "
            "or wavelet."
        )
    model = Model(
        space,
        kernel,
        network,
        dtype=config.memory.torch_dtype,
        times=config.times,
        field=field,
        recipe=recipe,
    )
    config.memory.apply(model)
    return Diffusion(model, digest=encoders[0][1] if encoders else "")


def _check_kernel(recipe: Recipe, kernel: Kernel) -> None:
    name = name_of(type(kernel))
    if name != recipe.kernel:
        raise UsageError(
            f"kernel: expected {recipe.kernel} for the recipe {name_of(type(recipe))}, got {name}."
        )


def _space(
    spec: str | Mapping[str, Any] | None,
    run: Path | None,
    where: str,
    encoders: list[tuple[Autoencoder, str]],
) -> StateSpace:
    """The space of a specification, with the autoencoder of a run in place of its path."""
    parts = {"name": spec} if isinstance(spec, str) else dict(spec or {})
    takes = inspect.signature(component("space", str(parts.get("name")))).parameters
    derived: dict[str, Any] = {}
    if "autoencoder" in takes:
        autoencoder, digest = _encoder(str(parts.pop("autoencoder", "")), run, where)
        encoders.append((autoencoder, digest))
        derived |= {"autoencoder": autoencoder, "digest": digest}
    if "inner" in takes:
        derived["inner"] = _space(parts.pop("inner", None), run, f"{where}.inner", encoders)
    return build("space", parts, where=where, **derived)


def autoencoder_path(spec: Any) -> str | None:
    """The autoencoder's run that a space, or a model of its codes, names, if it does."""
    if not isinstance(spec, Mapping):
        return None
    return spec.get("autoencoder") or autoencoder_path(spec.get("inner"))


def keep_autoencoder(config: RunConfig, run: Path) -> None:
    """Copies the autoencoder that a run works on into it, once: the run then stands alone.

    Raises:
        UsageError: the autoencoder is not trained yet
        DataError: its checkpoint is damaged
    """
    path = autoencoder_path(config.space) or autoencoder_path(config.autoencoder)
    where = "space.autoencoder" if config.autoencoder is None else "autoencoder.autoencoder"
    if path is None or (run / "autoencoder").is_dir():
        return
    if not (Path(path) / "config.yaml").is_file():
        raise UsageError(
            f"{where} = {path}: no such run; train it first: volumediff train "
            f"configs/autoencoders/{Path(path).name}.yaml output={path}"
        )
    inner, autoencoder = load_run(Path(path))
    text = inner.to_yaml().encode()
    state = {n: t.contiguous() for n, t in autoencoder.state_dict().items()}
    weights = safetensors.torch.save(state)
    publish(
        run / "autoencoder",
        {
            "config.yaml": lambda file: file.write(text),
            "weights.safetensors": lambda file: file.write(weights),
        },
    )


def _encoder(path: str, run: Path | None, where: str) -> tuple[Autoencoder, str]:
    """The autoencoder that a latent space asks for, and the SHA-256 of its weights."""
    if not path:
        raise UsageError(f"{where}.autoencoder: expected the folder of an autoencoder's run.")
    folder = None if run is None else run / "autoencoder"
    if folder is not None and folder.is_dir():
        try:
            verify(folder)
        except Damaged as error:
            raise DataError(f"{folder}: damaged: {error}; restore it from a backup.") from None
        autoencoder = _autoencoder(saved_config(folder))
        file = folder / "weights.safetensors"
        autoencoder.load_state_dict(safetensors.torch.load_file(file))
        return autoencoder, sha256(file)
    if (Path(path) / "config.yaml").is_file():
        return _autoencoder(saved_config(Path(path))), ""
    try:
        shipped = config_path("autoencoders", path if path.endswith(".yaml") else Path(path).name)
    except UsageError:
        raise UsageError(
            f"{where}.autoencoder = {path}: no such run and no shipped configuration of this name."
        ) from None
    return _autoencoder(load_run_config(shipped)), ""


def _autoencoder(config: RunConfig) -> Autoencoder:
    task = build_task(config)
    if not isinstance(task.module, Autoencoder):
        kind = type(task.module).__name__.lower()
        raise UsageError(
            f"{config.output}: expected the run of an autoencoder with a latent grid, such as kl "
            f"or vq, got {kind}."
        )
    return task.module
