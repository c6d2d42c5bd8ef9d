"""Every kind of artefact, written and read by those who do, and tiny runs that have them all."""

import pytest
import torch
from tiny_runs import tiny, write_data

from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.fitted._base import Fit
from volumediff.data.seen import Seen
from volumediff.data.splits import Split
from volumediff.errors import DataError
from volumediff.metrics import calibration_error, detection
from volumediff.outputs.ledger import open_ledger, read_entries
from volumediff.samples import landmarks
from volumediff.samples.seen_record import seen_by
from volumediff.samples.statistics import Statistics
from volumediff.settings.run_config import parse, saved_config
from volumediff.storage import checkpoint, records
from volumediff.tasks import build_task, load_task
from volumediff.tasks.state_classifier import states_facts
from volumediff.training.loop import train
from volumediff.training.run_folder import keep_config, record_session
from volumediff.tuning.trial_log import open_journal
from volumediff.tuning.trials import Trial


def weights(value):
    return {"a": torch.full((700,), value), "b": torch.full((3,), value, dtype=torch.float64)}


def splits_of(value):
    return Split(train=(value,), patients={value: value})


def fitted(value):
    h = detection.histogram(torch.arange(40.0) + value)
    probability = calibration_error.Probability((0.0, 3.0), (0.1, 0.7))
    statistics = {"mean": torch.full((500,), value)}
    return Calibration("f", statistics, h, (value,), 2.0, (h,), probability=probability)


def trial(value):
    return Trial((value,), (1.0,), (1.0,), (1.0,), (1.0,), (float("nan"),), 1.0, 1.0, 2.0, 3.0)


def save_checkpoint(place, value):
    checkpoint.save(
        place,
        "best",
        step=3,
        tensors={"weights": weights(value), "ema": weights(value)},
        state={
            "best": {"step": 3, "score": value},
            "borrowed": "",
            "validated": 3,
            "bound": {"files": {}, "settings": {}},
        },
        keep=1,
    )


def read_checkpoint(place):
    found = checkpoint.find(place, "best")
    values = {float(t[0]) for name in ("weights", "ema") for t in found.tensors(name).values()}
    assert values == {found.state["best"]["score"]}
    return found.state["best"]["score"]


def save_journal(place, value):
    journal = open_journal(place, "row", {"seed": 1})
    journal.trials = {(("axis", 1.0),): trial(value)}
    journal.write()


def read_journal(place):
    return open_journal(place, "row", {"seed": 1}).trials[(("axis", 1.0),)].ap[0]


def save_config(place, value):
    keep_config(place, tiny("population", place, f"optim.lr={value}"))


def save_ledger(place, value):
    with open_ledger(place, job="j", overwrite=True) as ledger:
        ledger.done("case", inputs={}, outputs=[], facts={"seconds": value})


ARTEFACTS = {
    "splits": (
        lambda p, v: splits_of(str(v)).save(p / "splits.json"),
        lambda p: float(Split.load(p / "splits.json").train[0]),
    ),
    "seen": (
        lambda p, v: Seen(unknown=(str(v),)).save(p / "seen.json"),
        lambda p: float(Seen.load(p / "seen.json").unknown[0]),
    ),
    "landmarks": (
        lambda p, v: records.write(
            p / "landmarks.json", landmarks.StoredLandmarks(landmarks=((v,),), cases=("a",))
        ),
        lambda p: landmarks.load_landmarks(p)[0][0],
    ),
    "config": (save_config, lambda p: saved_config(p).optim.lr),
    "calibration": (
        lambda p, v: fitted(v).save(p / "c.safetensors"),
        lambda p: Calibration.load(p / "c.safetensors").scores[0],
    ),
    "fit": (
        lambda p, v: Fit(weights(v), 2).save(p / "f.safetensors", owner={"a": "b"}),
        lambda p: float(Fit.load(p / "f.safetensors", owner={"a": "b"}).tensors["b"][0]),
    ),
    "checkpoint": (save_checkpoint, read_checkpoint),
    "tuning": (save_journal, read_journal),
    "ledger": (save_ledger, lambda p: read_entries(p)["case"].seconds),
}
OLD, NEW = 0.25, 0.5


def complaint(call):
    """What a call says about the data, if it does; anything else is a traceback."""
    try:
        call()
    except DataError as error:
        return str(error)
    return None


RULE = "data.preprocessing.intensity={name: histogram, foreground: nonzero}"
SHARES = "data.split={validation: 0.2, calibration: 0.2}"


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """An autoencoder, a diffusion run in its latents with everything a run has, its classifier."""
    home = tmp_path_factory.mktemp("storage")
    data = write_data(home / "data", cases=8)
    words = (RULE, SHARES, "optim.steps=1")
    codec = train(
        tiny(
            data,
            home / "codec",
            *words,
            "task=autoencoder",
            "autoencoder={name: kl, widths: [4], strides: [], blocks: 1, latent_channels: 1}",
        )
    )
    of = train(
        tiny(
            data,
            home / "of",
            *words,
            f"space={{name: latent, autoencoder: {codec}}}",
            "recipe={name: healthy, scalars: [age]}",
        )
    )
    values = {"attribute": "group", "values": ["control", "patient"], "drop": 0.0}
    tree = {
        "task": "state_classifier",
        "classifier": {"name": "encoder", "of": str(of), "widths": [4, 8], "groups": 2},
        "recipe": {"name": "class_conditional", **values},
        "optim": {"steps": 1, "batch_size": 2},
        "validation": {"every": 1, "volumes": 1},
        "output": str(home / "classifier"),
    }
    return {"of": of, "classifier": train(parse(tree))}


def built(place):
    """The untrained module of a run, with its copies of other runs."""
    return build_task(saved_config(place), run=place)


# Whose file, its path in the run, and who reads it first in training or inference.
RUN_FILES = {
    "config.yaml": ("of", saved_config),
    "splits.json": ("of", lambda p: Split.load(p / "splits.json")),
    "landmarks.json": ("of", landmarks.load_landmarks),
    "seen.json": ("of", seen_by),
    "manifest.json": ("of", lambda p: record_session(p, {})),
    "statistics/statistics.json": ("of", Statistics.load),
    "statistics/manifest.json": ("of", Statistics.load),
    "borrowed/autoencoder/config.yaml": ("of", built),
    "borrowed/autoencoder/weights.safetensors": ("of", built),
    "borrowed/autoencoder/manifest.json": ("classifier", built),
    "borrowed/states/facts.json": ("classifier", states_facts),
    "borrowed/states/weights.safetensors": ("classifier", built),
    "borrowed/states/manifest.json": ("classifier", states_facts),
    "checkpoints/best-00000001/ema.safetensors": ("of", load_task),
    "checkpoints/best-00000001/weights.safetensors": ("of", load_task),
    "checkpoints/best-00000001/state.json": ("of", load_task),
    "checkpoints/best-00000001/manifest.json": ("of", load_task),
}
