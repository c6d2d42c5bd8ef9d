"""What the localization benchmark trains, and which rows go with it.

Every run is a shipped pipeline with words on top, the same that a user would give on the command
line. Sizes are for two CPU cores: 3 mm, a short schedule that decays to nothing.
"""

from dataclasses import dataclass

__all__ = ["RUNS", "Run", "words"]

GRID = (
    "data.preprocessing.spacing_mm=3",
    "data.preprocessing.shape=[64,80,64]",
    "data.preprocessing.centre=volume",  # volumes are aligned: they stay so
    "data.split={seed: 0, validation: 0.08, calibration: 0.16, test: 0.1}",
    "data.augmentation={flip: [0]}",
    "memory={dtype: bfloat16, channels_last: true}",
)
SHORT = (
    "optim.lr=1e-3",
    "optim.warmup=100",
    "optim.decay=0.01",
    "optim.weight_decay=0.01",
    "optim.betas=[0.9,0.99]",
    "optim.ema=0.999",
    "optim.batch_size=2",
    "validation.every=1000",
    "validation.volumes=5",
    "validation.best=null",
    "validation.previews=0",
    "save_every=250",
)
ATLAS = ("recipe.atlas=true", "network.coordinates=true")
# None of its generators makes the lesions of the tests: those are lobed blobs and real shapes.
MIXTURE = (
    "corruption: {name: mixture, of: [{name: texture_patch}, {name: natural_patch}, "
    "{name: foreign_patch}, {name: mood}]}"
)
# A detector is asked at t = 1 alone.
DETECTOR = (
    f"recipe={{name: synthetic_anomalies, atlas: true, {MIXTURE}}}",
    "network.coordinates=true",
    "times=[0.999,1]",
)
BASELINES = ("prevalence", "intensity", "intensity_dark", "smoothing", "atlas")
CHAINS = ("ddpm", "thor", "autoddpm", "ddim_inversion", "ssim_ensemble", "features")


@dataclass(frozen=True)
class Run:
    """A training run.

    Arguments:
        pipeline: shipped configuration
        own: words of this run
        rows: methods that are measured with it
        share: of the steps that were asked for
    """

    pipeline: str
    own: tuple[str, ...] = ATLAS
    rows: tuple[str, ...] = ()
    share: float = 1.0


RUNS = {
    "wavelet": Run("wavelet_64", ATLAS, (*BASELINES, "scan", *CHAINS)),
    "wavelet-synthetic": Run("wavelet_64", DETECTOR, ("synthetic",)),
    "pseudo3d-synthetic": Run("pseudo3d_64", DETECTOR, ("synthetic",), share=0.8),
}


def words(run: Run, data: str, out: str, name: str, steps: int) -> list[str]:
    """The words of a training command."""
    return [
        f"data.root={data}/healthy_t1",
        f"data.cache={out}/cache",
        *GRID,
        *SHORT,
        f"optim.steps={max(1, round(run.share * steps))}",
        f"output={out}/{name}",
        *run.own,
    ]
