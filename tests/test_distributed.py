"""Processes: two and three under torchrun give what one gives, and end together.

A launch costs seconds before it does anything: each does many things, see `parallel_program`.
"""

import json
import signal
import socket
from pathlib import Path

import pytest
from child_processes import run_program, torchrun
from tiny_runs import figures, tiny, write_data

from volumediff.errors import UsageError
from volumediff.storage import checkpoint
from volumediff.training.loop import train

WORDS = [
    *("optim.batch_size=6", "optim.lr=1e-4", "save_every=2", "validation.volumes=2"),
    *("validation.previews=2", "validation.preview_steps=1"),
]
DIFFUSION = [*WORDS, "data.augmentation={flip: [0]}", "crop=[4,4,4]"]
KL = "autoencoder={name: kl, widths: [4, 8], strides: [[2, 2, 2]], blocks: 1, adversarial: 0.1}"
AUTOENCODER = [*WORDS, "task=autoencoder", KL, "optim.steps=3"]
VQ = (
    "autoencoder={name: vq, widths: [4, 8], strides: [[2, 2, 2]], blocks: 1, codes: 16, "
    "patience: 1}"
)
CRITIC = "autoencoder={name: fanogan, widths: [4, 4, 4]}"
GENERATOR = [
    "task=denoising_gan",
    "space=wavelet",
    "gan={latent: 3, widths: [4, 4], penalty_every: 1}",
    "kernel={name: gaussian, schedule: cosine}",
    "network={name: unet, widths: [4, 8], blocks: 1, groups: 2}",
]
STUDENT = [
    *("teacher=wavelet_64", "space=voxel"),
    "kernel={name: gaussian, schedule: {name: cosine, zero_terminal_snr: true}, prediction: v}",
    "network={name: unet, widths: [4, 8], blocks: 1, groups: 2}",
]
CLASSES = "recipe={name: class_conditional, attribute: group, values: [control, patient]}"
# Of each student what it learns; rounds and averages follow the steps.
STUDENTS = {
    "progressive": ["student={steps: 1, from_steps: 4, round_steps: 1}"],
    "consistency": ["student={steps: 1, from_steps: 4, target_ema: 0.5}"],
    "reflow": ["student={steps: 1, from_steps: 2}"],
    "guided": [CLASSES],
    "trajectory": ["student={states: 2, modes: 2, teacher_steps: 4}"],
}
LATENT = "space={name: latent, autoencoder: kl_64}"
ADAPTER = ["start_from=run", "adapter={name: lora, rank: 2}"]
PSEUDO3D = [
    "space={name: slices, axis: w, inner: voxel}",
    "network={name: pseudo3d, widths: [4, 8], blocks: 1, groups: 2, coordinates: true}",
]
ATTENTION = [
    "network={name: unet, widths: [4, 8], blocks: 1, groups: 2, attention_levels: [1]}",
    "memory={channels_last: true, checkpoint: true}",
]
# Of each network its way to be held, and the launches; the number of micro-batches divides the
# samples of a rank.
EXACT = [
    {"name": "attention", "words": ATTENTION, "shard": True, "ranks": [2, 3], "accumulate": 1},
    {"name": "attention", "words": ATTENTION, "shard": False, "ranks": [2, 3], "accumulate": 1},
    {"name": "slabs", "words": ["space=wavelet", "memory.slab=3"], "shard": True, "ranks": [2]},
    {"name": "pseudo3d", "words": PSEUDO3D, "shard": True, "ranks": [2]},
    {"name": "latent", "words": [LATENT], "shard": True, "ranks": [2]},
    {"name": "autoencoder", "words": ["task=autoencoder", KL], "shard": False, "ranks": [2]},
    {"name": "generator", "words": GENERATOR, "shard": True, "ranks": [2]},
    {"name": "codebook", "words": ["task=autoencoder", VQ], "shard": True, "ranks": [2, 3]},
    {"name": "adapter", "words": ADAPTER, "shard": True, "ranks": [2]},
    # a loss with gradients on its way
    {"name": "critic", "words": ["task=autoencoder", CRITIC], "shard": True, "ranks": [2]},
    *(
        {"name": f"domain {space}", "words": words, "shard": True, "ranks": [2], "domain": 2}
        for space, words in {"wavelet": ["space=wavelet"], "pseudo3d": PSEUDO3D}.items()
    ),
    *(
        {
            "name": name,
            "words": [f"task={name}", *STUDENT, *words],
            "shard": shard,
            "ranks": [2, 3] if name == "consistency" else [2],
        }
        for name, words in STUDENTS.items()
        for shard in ([True, False] if name == "progressive" else [True])
    ),
]
RUNS = {"copies first": False, "shares first": True}
PROGRAM = Path(__file__).with_name("parallel_program.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), cases=10)


def launch(folder, ranks, *, exact=(), trainings=(), faults=()):
    """Lines of the main process, and everything that was said."""
    plan = folder / f"plan-{ranks}.json"
    plan.write_text(json.dumps({"exact": exact, "train": trainings, "faults": faults}))
    done = run_program([*torchrun(ranks), PROGRAM, plan])
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return lines, done.stderr


@pytest.fixture(scope="module")
def launched(data, tmp_path_factory):
    """Exact steps of two and three ranks, and trainings that went from two to three."""
    folder = tmp_path_factory.mktemp("ranks")
    two = [
        [str(data), str(folder / name), [*DIFFUSION, "optim.steps=2", shard(divided)]]
        for name, divided in RUNS.items()
    ]
    others = [
        [str(data), str(folder / "autoencoder"), AUTOENCODER],
        [str(data), str(folder / "three"), [*DIFFUSION, "processes.number=3"]],
        [str(data), str(folder / "odd"), [*DIFFUSION, "optim.batch_size=3"]],
    ]
    three = [
        [str(data), str(folder / name), [*DIFFUSION, "optim.steps=4", shard(not divided)]]
        for name, divided in RUNS.items()
    ]
    accumulated = [{**case, "accumulate": 3 // case.get("accumulate", 3)} for case in EXACT]
    first, said = launch(folder, 2, exact=accumulated, trainings=[*two, *others])
    layouts = {name: layout(folder / name) for name in RUNS}
    uneven = [case for case in EXACT if 3 in case["ranks"]]
    second, _ = launch(folder, 3, exact=uneven, trainings=three)
    return folder, [*first, *second], said, layouts


def shard(divided):
    return f"processes.shard={str(divided).lower()}"


def layout(run):
    """Names, shapes and types of all tensors of the last checkpoint."""
    found = checkpoint.find(run, "last")
    return {
        f"{name}/{n}": (tuple(t.shape), t.dtype)
        for name in ("weights", "ema", "optimizer")
        for n, t in found.tensors(name).items()
    }


def difference(a, b, name):
    one, other = (checkpoint.find(run, "last").tensors(name) for run in (a, b))
    assert set(one) == set(other)
    return max(float((one[n].double() - other[n].double()).abs().max()) for n in one)


@pytest.mark.slow
def test_steps_of_several_processes_are_those_of_one(launched):
    """Losses, gradient norms, clipped AdamW steps, moments and averages, in float64."""
    _, lines, _, _ = launched
    assert len(lines) == sum(len(case["ranks"]) for case in EXACT)
    for line in lines:
        # trajectories begin with noise, which is in float32, and so are means of their losses
        assert line["numbers"] < (1e-6 if line["case"] == "trajectory" else 1e-12), line
        for name in ("validation", "weights", "ema", "optimizer"):
            assert line[name] < 1e-12, line
        if line["case"] in ("progressive", "consistency"):
            assert line["training"] < 1e-12, "the teacher of the round, or the average"


@pytest.mark.slow
def test_shares_are_a_part_of_weights_and_moments(launched):
    _, lines, _, _ = launched
    for line in lines:
        assert line["held"] == line["share"], line
        # two moments per weight, and a count of steps per tensor
        assert 1 <= line["moments"] / (2 * line["share"]) < 1.02, line


@pytest.mark.slow
def test_a_run_moves_between_numbers_of_processes_and_ways_to_hold_it(launched, data, tmp_path):
    folder, _, said, layouts = launched
    assert "2 process(es) on cpu" in said
    whole = train(tiny(data, tmp_path / "one", *DIFFUSION, "optim.steps=6"))
    for name in RUNS:
        run = folder / name
        assert checkpoint.find(run, "last").step == 4
        assert layouts[name] == layout(whole)
        train(tiny(data, run, *DIFFUSION, "optim.steps=6"))
        assert layout(run) == layout(whole)
        for kind in ("weights", "ema"):
            assert difference(run, whole, kind) < 1e-5
        same_rows(run, whole)
        bests = [checkpoint.find(r, "best").step for r in (run, whole)]
        assert bests[0] == bests[1]
        pictures = [sorted(p.name for p in (r / "previews").iterdir()) for r in (run, whole)]
        assert set(pictures[1]) <= set(pictures[0])


def same_rows(run, other):
    """Every step and validation once, with the same numbers."""
    rows = [[r for r in figures(x) if "loss" in r or r["step"] == 3] for x in (run, other)]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]]
    for a, b in zip(*rows, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_players_take_turns_in_all_processes(launched, data, tmp_path):
    folder, _, _, _ = launched
    one = train(tiny(data, tmp_path / "one", *AUTOENCODER))
    for kind in ("weights", "ema"):
        assert difference(folder / "autoencoder", one, kind) < 1e-5
    same_rows(folder / "autoencoder", one)


@pytest.mark.slow
def test_all_processes_refuse_together(launched):
    _, _, said, _ = launched
    refusal = "processes.number: 3 requested, 2 launched, 2 joined"
    assert said.count(refusal) == 2, "both ranks say why"
    assert said.count("shared by 2 processes") == 2


@pytest.mark.slow
def test_faults_of_one_process_end_all_with_a_checkpoint(data, tmp_path):
    """Killed, frozen, asked to stop; and work of the main process that takes its time."""
    endless = ["optim.steps=99999", "validation.every=99999", "save_every=1"]
    kinds = {
        "kill": [*endless, "processes.timeout_s=600"],
        "freeze": [*endless, "processes.timeout_s=8"],
        # while the main process waits for the other one's preview, which may take its time
        "frozen preview": [
            *("optim.steps=3", "save_every=1", "validation.previews=2", "processes.timeout_s=8")
        ],
        str(int(signal.SIGUSR1)): [*endless, "save_every=99999"],
        "patience": ["optim.steps=3", "validation.previews=1", "processes.timeout_s=8"],
    }
    faults = [
        [
            *(int(kind) if kind.isdigit() else kind, str(data), str(tmp_path / kind), words),
            *(free_port(), str(tmp_path / f"ended-{kind}")),
        ]
        for kind, words in kinds.items()
    ]
    lines, said = launch(tmp_path, 2, faults=faults)
    codes = {(line["kind"], line["rank"]): line["code"] for line in lines}
    seconds = {line["kind"]: line["seconds"] for line in lines if line["rank"] == 0}
    usr1 = str(int(signal.SIGUSR1))
    for kind, step in {"kill": 2, "freeze": 2, "frozen preview": 3}.items():
        assert codes[kind, 0] == 1
        assert codes[kind, 1] == -signal.SIGKILL
        assert seconds[kind] < 60
        assert checkpoint.find(tmp_path / kind, "last").step == step
    assert said.count("another process of this training ended") == 3
    assert codes[usr1, 1] == 128 + signal.SIGUSR1
    assert codes[usr1, 0] == 128 + signal.SIGTERM, "the other one is told by the first"
    assert checkpoint.find(tmp_path / usr1, "last").step == 3
    assert codes["patience", 0] == codes["patience", 1] == 0
    assert seconds["patience"] > 22, "both waits were longer than a step may take"
    assert checkpoint.find(tmp_path / "patience", "last").step == 3


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_launch_that_did_not_become_processes_is_refused(data, tmp_path):
    """What `accelerate launch --cpu --num_processes 2` does: one process, without a word."""
    with pytest.raises(
        UsageError, match=r"processes.number: 2 requested, 1 launched, 1 joined.*torchrun"
    ):
        train(tiny(data, tmp_path / "run", "processes.number=2"))
