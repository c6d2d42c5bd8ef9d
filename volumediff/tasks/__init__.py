"""Tasks: what is trained, each with configuration, module, loss, validation and loading.

diffusion             a diffusion model of volumes, labels or anomalies, as its recipe says
autoencoder           an autoencoder or another network that reconstructs volumes
state_classifier      a classifier of the noisy states of a diffusion run
residual_segmenter    a network that segments by volumes and what a diffusion run makes of them
segmentation          a network that learns labels by itself, perhaps from a diffusion run onwards
pretraining           the encoder of a network, from volumes without labels
feature_distillation  the encoder of a network, from the features of a diffusion run
probe                 heads that read labels from the features of a frozen diffusion run
progressive           a student of a diffusion run that walks in few steps, halved in rounds
consistency           a student that leaps from any noisy state to the end of its path
guided                a student that is told the weight of its guidance, and is called once
reflow                a student of the pairs that a diffusion run makes, whose paths are straighter
trajectory            a student that leads from noise to the whole trajectory in one call
denoising_gan         a diffusion model of a few large steps, each a draw

The file name is what `task:` in a configuration says. Another task is one more file with a class
of the contract in `_base.py`, here or in any importable module.
"""

from volumediff.tasks._agreement import agree
from volumediff.tasks._base import Criterion, Stage, Task, best_of
from volumediff.tasks._borrowing import BorrowedRun, Kept, borrowed, keep, kept, source_of
from volumediff.tasks._loading import build_task, load_task, resolved, task_of, warm_start
from volumediff.tasks._refusals import Refusals

__all__ = [
    "BorrowedRun",
    "Criterion",
    "Kept",
    "Refusals",
    "Stage",
    "Task",
    "agree",
    "best_of",
    "borrowed",
    "build_task",
    "keep",
    "kept",
    "load_task",
    "resolved",
    "source_of",
    "task_of",
    "warm_start",
]
