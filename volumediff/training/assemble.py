"""From a run's configuration to its model, and from a run's folder to the trained model.

What follows from other parts is derived here and never configured: channels from the data and the
space, classes and conditions from the recipe. Building needs no data and works on the meta device.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from volumediff.autoencoders import Autoencoder, Reconstructor
from volumediff.classification import StateClassifier
from volumediff.comparison import ReconstructionComparer
from volumediff.config import build, component, config_path, name_of
from volumediff.errors import DataError, UsageError
from volumediff.kernels._base import Kernel
from volumediff.kernels.discrete import Discrete
from volumediff.model import Model
from volumediff.noise import Gaussian
from volumediff.randomness import key
from volumediff.recipes._base import Recipe
from volumediff.spaces import StateSpace
from volumediff.storage import checkpoint
from volumediff.storage.digests import sha256_of_file
from volumediff.storage.folder import publish, verified
from volumediff.storage.seal import seal_text
from volumediff.storage.tensors import load_plain, stream
from volumediff.training.compared import check_compared, keep_statistics
from volumediff.training.run_config import (
    RunConfig,
    load_run_config,
    of_run,
    saved_config,
    source_of,
)
from volumediff.training.states import adopt_states, check_source, keep_states
from volumediff.training.task import (
    Classification,
    Comparison,
    Compression,
    Diffusion,
    Task,
)

__all__ = ["build_recipe", "build_task", "channels_of", "keep_sources", "load_run"]


def load_run(
    run: Path,
    *,
    which: Literal["best", "last"] = "best",
    weights: Literal["ema", "weights"] = "ema",
    overrides: Sequence[str] = (),
) -> tuple[RunConfig, Model | Reconstructor | StateClassifier | ReconstructionComparer]:
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
            f"{run}: the weights of its {_frozen_part(config)} are not those that it was trained "
            "with; restore them from a backup."
        )
    try:
        task.load(found.tensors(weights))
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{found.path}: does not fit {run}/config.yaml ({reason}).") from None
    return config, task.module.eval()


def _frozen_part(config: RunConfig) -> str:
    return "autoencoder" if config.comparer is None else f"model {of_run(config)}"


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
        if config.classifier is not None:
            return _classification(config, run)
        if config.comparer is not None:
            return _comparison(config, run)
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
        out_channels=k + (recipe.mask_loss > 0),
        image_channels=image_channels,
        classes=recipe.classes,
        scalars=len(recipe.scalars),
        **references,
    )
    kernel = build("kernel", config.kernel)
    _check_kernel(recipe, kernel, space)
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


def _classification(config: RunConfig, run: Path | None) -> Task:
    recipe, c = build_recipe(config), channels_of(config)
    # Samples without a class, and conditions that a classifier is not told, have no meaning here.
    if not recipe.classes or getattr(recipe, "drop", 0) or recipe.atlas or recipe.scalars:
        raise UsageError(
            "recipe: expected classes without drop, atlas and scalars for a classifier, such as "
            "{name: class_conditional, attribute: group, values: [healthy, sick], drop: 0}, got "
            f"{config.recipe}."
        )
    encoders: list[tuple[Autoencoder, str]] = []
    space = _space(config.space, run, "space", encoders)
    assert isinstance(config.classifier, Mapping), "it names its run"
    spec = {n: v for n, v in config.classifier.items() if n != "of"}
    classifier = build("classifier", spec, in_channels=space.channels(c), classes=recipe.classes)
    kernel, field = build("kernel", config.kernel), build("noise", config.noise)
    dtype = config.memory.torch_dtype
    module = StateClassifier(space, kernel, classifier, dtype=dtype, field=field)
    if run is not None:
        adopt_states(module.space, run)
    config.memory.apply(module)
    return Classification(module, digest=encoders[0][1] if encoders else "")


def _comparison(config: RunConfig, run: Path | None) -> Comparison:
    """A comparer, with the diffusion model that it is for: trained, where there is a run."""
    of, source, digest = of_run(config), source_of(config), ""
    if run is None:
        model = build_task(source).module
    else:
        _, model = load_run(of)
        found = checkpoint.find(of, "best")
        assert found is not None, "it was just loaded"
        digest = found.digest
    check_compared(config, source, model)
    assert isinstance(config.comparer, Mapping), "it names its run"
    spec = {n: v for n, v in config.comparer.items() if n != "of"}
    comparer = build("comparer", spec, channels=channels_of(config))
    model.dtype = config.memory.torch_dtype
    module = ReconstructionComparer(model, comparer, dtype=model.dtype, times=config.times)
    config.memory.apply(module)
    return Comparison(module, digest=digest)


def _check_kernel(recipe: Recipe, kernel: Kernel, space: StateSpace) -> None:
    name = name_of(type(kernel))
    if isinstance(kernel, Discrete) and recipe.whole:
        _check_bits(kernel, space)
    elif name != recipe.kernel:
        raise UsageError(
            f"kernel: expected {recipe.kernel} for the recipe {name_of(type(recipe))}, got {name}."
        )


def _check_bits(kernel: Discrete, space: StateSpace) -> None:
    if not space.binary:
        raise UsageError(
            "kernel: expected a space of bits for discrete, got "
            f"{name_of(type(space))}, whose states are not; use the latents of a binary "
            "autoencoder, space={name: latent, autoencoder: RUN}."
        )
    if kernel.classes != 2:
        raise UsageError(f"kernel.classes: expected 2 for bits, got {kernel.classes}.")


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


def keep_sources(config: RunConfig, run: Path) -> None:
    """Copies what other runs give to this one into it, once: the run then stands alone.

    A latent space, or a model of codes, takes an autoencoder; a classifier the states of a
    diffusion run. A comparer goes on with the diffusion run itself, whose weights a checkpoint
    binds, and with a copy of its statistics.

    Raises:
        UsageError: the other run is not trained yet, or trains something else
        DataError: its checkpoint is damaged
    """
    if config.comparer is not None:
        keep_statistics(config, run)
        return
    if config.classifier is not None and not (run / "states").is_dir():
        of = check_source(config)
        _, model = load_run(of)
        if not isinstance(model, Model):
            raise UsageError(f"classifier.of = {of}: expected the run of a diffusion model.")
        keep_states(run, of, model)
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
    state = autoencoder.state_dict()
    publish(
        run / "autoencoder",
        {
            "config.yaml": seal_text(inner.to_yaml()),
            "weights.safetensors": lambda file: stream(file, state),
        },
    )


def _encoder(path: str, run: Path | None, where: str) -> tuple[Autoencoder, str]:
    """The autoencoder that a latent space asks for, and the SHA-256 of its weights."""
    if not path:
        raise UsageError(f"{where}.autoencoder: expected the folder of an autoencoder's run.")
    folder = None if run is None else run / "autoencoder"
    if folder is not None and folder.is_dir():
        autoencoder = _autoencoder(saved_config(verified(folder)))
        file, advice = folder / "weights.safetensors", "restore the folder from a backup"
        try:
            autoencoder.load_state_dict(load_plain(file, advice=advice)[0])
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{file}: does not fit its config.yaml ({reason}); {advice}."
            ) from None
        return autoencoder, sha256_of_file(file)
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
