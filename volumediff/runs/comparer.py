"""A trained comparer, for the diffusion run whose reconstructions it knows."""

from pathlib import Path

from volumediff.comparison import ReconstructionComparer, VoxelPosterior
from volumediff.config import build
from volumediff.errors import DataError, UsageError
from volumediff.runs.trained import Trained
from volumediff.samples.seen import seen_by
from volumediff.settings.run_config import saved_config
from volumediff.storage import checkpoint
from volumediff.tasks import task_of
from volumediff.tasks.residual_segmenter import ResidualSegmenterTask, supervision_of

__all__ = ["load_comparer"]


def load_comparer(trained: Trained, run: Path | str) -> VoxelPosterior:
    """The best checkpoint of a comparer's run, on the model's device.

    Arguments:
        trained: the diffusion run whose reconstructions it is to see
        run: folder of the comparer's run

    Raises:
        UsageError: no run, no comparer's run, or one that was trained with other weights
        DataError: the run is damaged
    """
    run = Path(run)
    config = saved_config(run)
    if not issubclass(task_of(config), ResidualSegmenterTask):
        raise UsageError(
            f"map.run = {run}: expected the run of a comparer; train one with volumediff train "
            f"configs/comparers/siamese_64.yaml comparer.of={trained.run}"
        )
    found = checkpoint.find(run, "best")
    if found is None:
        raise UsageError(f"map.run = {run}: has no checkpoint yet; train it further.")
    if found.state["borrowed"] != trained.digest:
        raise UsageError(
            f"map.run = {run}: was trained for weights of {config.of} that are not those of "
            f"{trained.run}/checkpoints/{trained.checkpoint}; train one with "
            f"comparer.of={trained.run}."
        )
    spec = {n: v for n, v in config.comparer.items() if n != "of"}
    comparer = build("comparer", spec, channels=config.data.channel_count)
    module = ReconstructionComparer(trained.diffusion, comparer, dtype=config.memory.torch_dtype)
    prefix = "comparer."
    tensors = {n.removeprefix(prefix): t for n, t in found.tensors("ema").items()}
    try:
        comparer.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{found.path}: does not fit {run}/config.yaml ({reason}).") from None
    config.memory.apply(comparer)
    config.memory.freeze(comparer.to(trained.device).eval())
    supervision = supervision_of(build("recipe", config.recipe))
    return VoxelPosterior(module.probability, supervision, found.digest, seen_by(run))
