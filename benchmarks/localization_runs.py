"""What the localization benchmark trains, and which rows go with it.

Every run is a shipped pipeline with words on top, the same that a user would give on the command
line. Sizes are for two CPU cores: 3 or 4 mm, a short schedule that decays to nothing.
"""

from dataclasses import dataclass

from volumediff.data.corruptions.mood import KINDS

__all__ = ["LEFT_OUT", "RUNS", "Run", "words"]

EXTENT_MM = (192.0, 240.0, 192.0)  # holds the brain of the template
DATA = (
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
COORDINATES = ("network.coordinates=true",)
FLOW = "kernel={name: gaussian, prediction: u, schedule: {name: rectified}}"
ATLAS = ("recipe.atlas=true", *COORDINATES)
# None of its generators makes the lesions of the tests: those are lobed blobs and real shapes.
MIXTURE = (
    "corruption: {name: mixture, of: [{name: texture_patch}, {name: natural_patch}, "
    "{name: foreign_patch}, {name: mood}]}"
)


def detector(corruption: str, *, atlas: bool = True) -> tuple[str, ...]:
    """Words of a model of synthetic anomalies; it is asked at t = 1 alone, and trained there."""
    recipe = f"{{name: synthetic_anomalies, atlas: {str(atlas).lower()}, {corruption}}}"
    return (f"recipe={recipe}", *COORDINATES, "times={name: uniform, low: 0.999}")


def mood(left_out: str | None = None) -> str:
    """The kinds of the MOOD challenge, one of them left out."""
    kinds = [kind for kind in KINDS if kind != left_out]
    return f"corruption: {{name: mood, kinds: [{', '.join(kinds)}]}}"


BASELINES = ("prevalence", "intensity", "intensity_dark", "smoothing", "atlas")
CHAINS = ("ddpm", "thor", "autoddpm", "ddim_inversion", "ssim_ensemble", "features")
STUDENTS = ("ddpm_z_student", "ssim_ensemble_z_student")
# Kind of training anomaly -> kinds of the tests that are most like it.
LEFT_OUT = {
    "addition": ("hyper", "hypo"),
    "noise": ("texture",),
    "constant": ("cavity",),
    "interpolation": ("foreign_patch",),
    "reflection": ("reflection",),
    "source": ("mass_effect",),
    "sink": ("atrophy",),
}


@dataclass(frozen=True)
class Run:
    """A training run.

    Arguments:
        pipeline: shipped configuration
        own: words of this run
        rows: methods that are measured with it
        share: of the steps that were asked for
        coarsening: how many times coarser than the test volumes its voxels are
        first: another run that it is built on: its autoencoder, or the teacher of a student
        student: whether it is distilled from that run, with its data
    """

    pipeline: str
    own: tuple[str, ...] = ATLAS
    rows: tuple[str, ...] = ()
    share: float = 1.0
    coarsening: int = 1
    first: str | None = None
    student: bool = False


def student(steps: int, teacher: str, *, from_steps: int, round_steps: int, updates: int) -> Run:
    """Progressive distillation of another run."""
    own = (
        f"student={{steps: {steps}, from_steps: {from_steps}, round_steps: {round_steps}}}",
        f"optim.steps={updates}",
        *("optim.lr=3e-4", "optim.warmup=20", "optim.ema=0.99", "optim.batch_size=2"),
        *("validation.every=200", "validation.volumes=3", "validation.previews=0"),
        "save_every=100",
    )
    return Run("progressive", own, STUDENTS, first=teacher, student=True)


RUNS = {
    "wavelet": Run("wavelet_64", ATLAS, (*BASELINES, "scan", *CHAINS)),
    "wavelet-synthetic": Run("wavelet_64", detector(MIXTURE), ("synthetic",)),
    # the run above, copied and taken further: its rate fell to nothing and rose again
    "wavelet-synthetic-long": Run(
        "wavelet_64", detector(MIXTURE), ("synthetic", "synthetic_z"), share=2.4
    ),
    "pseudo3d-synthetic": Run("pseudo3d_64", detector(MIXTURE), ("synthetic",), share=0.8),
    # the other pipelines
    "pseudo3d": Run("pseudo3d_64", ATLAS, ("scan",)),
    "patch": Run("patch_64", (*ATLAS, "optim.batch_size=4"), ("scan",)),
    "kl": Run("kl_64", ("memory={dtype: float32, channels_last: false}",)),
    "latent": Run("latent_64", ATLAS, ("scan",), first="kl"),
    # without the healthy mean as a condition
    "wavelet-alone": Run("wavelet_64", COORDINATES, ("scan",)),
    "wavelet-synthetic-alone": Run("wavelet_64", detector(MIXTURE, atlas=False), ("synthetic",)),
    "wavelet-flow": Run("wavelet_64", (*COORDINATES, FLOW), ("scan",)),
    "patch-alone": Run("patch_64", (*COORDINATES, "optim.batch_size=4"), ("scan",)),
    "pseudo3d-alone": Run("pseudo3d_64", COORDINATES, ("scan",)),
    "latent-alone": Run("latent_64", COORDINATES, ("scan",), first="kl"),
    # few steps in place of many
    "student-4": student(4, "wavelet-alone", from_steps=32, round_steps=150, updates=500),
    "student-2": student(2, "student-4", from_steps=4, round_steps=200, updates=200),
    "student-1": student(1, "student-2", from_steps=2, round_steps=200, updates=200),
    "patch-student": student(2, "patch-alone", from_steps=8, round_steps=50, updates=100),
    "pseudo3d-student": student(2, "pseudo3d-alone", from_steps=8, round_steps=50, updates=100),
    # what native 3D and full resolution buy
    "slices-synthetic": Run(
        "pseudo3d_64",
        (*detector(MIXTURE), "network.through_plane=false"),
        ("synthetic",),
        share=0.8,
    ),
    "half-synthetic": Run("wavelet_64", detector(MIXTURE), ("synthetic",), coarsening=2),
    # one kind of anomaly left out of training
    "mood": Run("wavelet_64", detector(mood()), ("synthetic",), share=0.6),
    **{
        f"mood-without-{kind}": Run("wavelet_64", detector(mood(kind)), ("synthetic",), share=0.6)
        for kind in LEFT_OUT
    },
}


def words(run: Run, data: str, out: str, name: str, *, steps: int, spacing: float) -> list[str]:
    """The words of a training command.

    Arguments:
        spacing: voxel size of the test volumes in mm
    """
    if run.student:
        return [
            f"teacher={out}/{run.first}",
            f"data.cache={out}/cache",
            f"output={out}/{name}",
            *run.own,
        ]
    size = spacing * run.coarsening
    # a multiple of 16 voxels, of 8 where they are coarser: the coarse grid is half the fine one
    multiple = 16 // run.coarsening
    shape = [multiple * -(-round(mm / size) // multiple) for mm in EXTENT_MM]
    own = list(run.own)
    if run.pipeline == "pseudo3d_64":
        own.append(f"crop={[*shape[:2], 32]}")
    if run.first is not None:
        own.append(f"space.autoencoder={out}/{run.first}")
    return [
        f"data.root={data}/healthy_t1",
        f"data.cache={out}/cache",
        f"data.preprocessing.spacing_mm={size:g}",
        f"data.preprocessing.shape={shape}",
        *DATA,
        *SHORT,
        f"optim.steps={max(1, round(run.share * steps))}",
        f"output={out}/{name}",
        *own,
    ]
