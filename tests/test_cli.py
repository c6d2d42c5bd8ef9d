"""The program: what users type wrong becomes one line with a reason and the right exit code."""

import json
import re
import signal
import sys
import time
from pathlib import Path
from subprocess import PIPE

import nibabel as nib
import numpy as np
import pytest
from child_processes import running
from tiny_app import PLAIN, base, label_run, program, run, save, write_cases
from tiny_runs import phantom, write_data

from volumediff import cli
from volumediff.commands import _doctor

__all__ = ["base", "program", "run"]  # fixtures

COMMANDS = {
    "schema",
    "init",
    "train",
    "import",
    "check",
    "prepare",
    "draw",
    "restore",
    "localize",
    "findings",
    "calibrate",
    "tune",
    "segment",
    "translate",
    "sample",
    "evaluate",
    "plan",
    "profile",
    "demo",
    "export",
    "push",
    "pull",
    "info",
    "doctor",
    "docs",
}


def test_the_commands_are_these():
    found = {c.name or c.callback.__name__ for c in cli.app.registered_commands}
    assert found == COMMANDS


def test_without_words_there_is_help(program):
    code, out, _ = program()
    assert code == 0
    assert "Usage" in out
    assert program("--version")[1].startswith("volumediff ")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_shows_its_help(command, program):
    code, shown, complaint = program(command, "--help")
    assert (code, complaint) == (0, "")
    assert "Usage" in shown


WRONG = {
    "command": (
        ("localise",),
        "No such command 'localise'. Did you mean 'localize'? See volumediff --help.",
    ),
    "option": (("info", "--jsno"), "No such option: --jsno"),
    "no run given": (("calibrate",), "Missing option '--run'"),
    "no word": (("localize", "--run", "r", "-o", "o"), "Missing argument 'INPUT|KEY=VALUE'"),
    "no config": (("train", "wavlet_128"), "Did you mean 'wavelet_128'?"),
    "key": (("train", "wavelet_64", "optm.lr=1"), "optm: unknown key"),
    "value": (("train", "wavelet_64", "optim.lr=fast"), "got 'fast'"),
    "no data": (("train", "wavelet_64", "output={tmp}/r"), "data.root: expected the folder"),
    "word": (("train", "wavelet_64", "optim.lr"), "expected key=value"),
    "no run": (
        ("localize", "x", "--run", "{tmp}", "-o", "y"),
        "no config.yaml, so this is no run",
    ),
    "layout": (("check", "{tmp}", "--layout", "bid"), "choose from auto, atlas"),
    "count": (("sample", "{tmp}", "-o", "x", "-n", "0"), "-n"),
    "no maps": (("evaluate", "{tmp}", "--truth", "{data}"), "localize into this folder first"),
    "demo": (("demo", "-o", "{tmp}/d", "tests.subjects=1"), "demo: tests"),
    "doctor": (("doctor", "wavelet_64", "space.levls=2"), "Did you mean 'levels'?"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_is_one_line_and_exit_code_2(name, program, base, run, tmp_path):
    words, reason = WRONG[name]
    place = {"tmp": tmp_path, "data": base / "data"}
    code, _, complaint = program(*(word.format(**place) for word in words))
    assert code == 2
    assert reason in complaint
    lines = complaint.splitlines()
    assert lines[-1].startswith("volumediff: error: ")
    assert "Traceback" not in complaint


WRONG_FOR_A_RUN = {
    "method": (("--method", "thorr"), "Did you mean 'thor'?"),
    "slot": (("--method", "ddpm", "sampeler.steps=2"), "Did you mean 'sampler'?"),
    "guidance": (("--method", "cfg_inversion"), "class-conditional"),
    "device": (("--device", "cuda:99"), "device 'cuda:99': not usable here"),
    "checkpoint": (("--which", "worst"), "'best', 'last'"),
    "no input": (("threshold=otsu",), "expected a volume, a folder or a datalist to work on"),
    "no file": (("{tmp}/none.nii.gz",), "nothing there"),
    "text": (("{tmp}/notes.txt",), "expected .nii, .nii.gz, a folder"),
    "twice": (("{tmp}/in", "{tmp}/in/new-0_T1w.nii.gz", "{tmp}/in"), "a case called new-0;"),
}


@pytest.mark.parametrize("name", WRONG_FOR_A_RUN)
def test_what_does_not_suit_a_run_is_said(name, program, run, tmp_path):
    words, reason = WRONG_FOR_A_RUN[name]
    (tmp_path / "notes.txt").write_text("no volume")
    source = write_cases(tmp_path / "in", count=1)
    words = [word.format(tmp=tmp_path) for word in words]
    source = [source] if words[0].startswith("-") else []
    code, _, complaint = program("localize", *source, "--run", run, "-o", tmp_path / "out", *words)
    assert code == 2
    assert reason in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_runs_are_used_for_what_they_were_trained_for(program, base, run, tmp_path):
    source = write_cases(tmp_path / "in", count=1)
    labels = label_run(base)
    code, _, complaint = program(
        "localize", source, "--run", labels, "-o", tmp_path / "out", *PLAIN
    )
    assert code == 2
    assert "segment with it" in complaint
    code, _, complaint = program("segment", source, "--run", run, "-o", tmp_path / "out")
    assert code == 2
    assert "localize anomalies with it" in complaint
    code, _, complaint = program("sample", "--run", labels, "-o", tmp_path / "out")
    assert code == 2
    assert "samples label maps of an image; segment one with it" in complaint


def test_bad_data_is_exit_code_1(program, tmp_path):
    code, _, complaint = program("check", tmp_path / "nowhere")
    assert code == 1
    assert complaint.count("\n") == 1
    data = write_data(tmp_path / "data", cases=2)
    assert program("check", data)[0] == 0
    (data / "sub-00_T1w.nii.gz").write_bytes(b"no volume")
    code, table, _ = program("check", data)
    assert code == 1
    assert "sub-00_T1w.nii.gz" in table
    assert "1 readable files, 1 errors" in table
    code, text, _ = program("check", data, "--json")
    assert code == 1
    assert {row["severity"] for row in json.loads(text)} >= {"error", "info"}


def test_a_damaged_run_is_exit_code_1(program, run, tmp_path):
    import shutil

    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    for weights in broken.glob("checkpoints/*/ema.safetensors"):
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    source = write_cases(tmp_path / "in", count=1)
    code, _, complaint = program("localize", source, "--run", broken, "-o", tmp_path / "o", *PLAIN)
    assert code == 1
    assert "damaged" in complaint


def test_an_output_that_cannot_be_written_is_one_line(program, run, tmp_path):
    source = write_cases(tmp_path / "in", count=1)
    (tmp_path / "file").write_text("in the way")
    code, _, complaint = program(
        "localize", source, "--run", run, "-o", tmp_path / "file" / "out", *PLAIN
    )
    assert code == 1
    assert complaint.count("\n") == 1
    assert "cannot be written" in complaint


def test_ctrl_c_is_130(tmp_path):
    words = ["volumediff", "check", str(tmp_path)]
    code = (
        "import signal, sys, time, volumediff.data.survey as c\n"
        # a test that was started in the background may have inherited that it is ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def slow(*a, **k):\n"
        "    print('ready', flush=True); time.sleep(60)\n"
        "c.survey_sources = slow\n"
        f"sys.argv = {words!r}\n"
        "from volumediff.cli import main; main()"
    )
    with running([sys.executable, "-c", code], stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        complaint = process.ended(30).stderr
    assert process.returncode == 130
    assert "interrupted" in complaint
    assert "Traceback" not in complaint


def test_doctor_sees_releases_devices_and_the_global_mean(program, monkeypatch):
    code, text, _ = program("doctor", "--json")
    assert code == 0
    names = {line["name"]: line["state"] for line in json.loads(text)}
    assert names["attention auto"] == names["cpu"] == names["torch"] == "ok"
    for release, state in (("2.9.1+cu128", "problem"), ("2.10.0", "ok"), ("2.14.0", "note")):
        assert _doctor._release(release).state == state
    for release, cudnn, state in (
        ("2.9.1", 91002, "problem"),
        ("2.9.1", 91500, "ok"),
        ("2.9.0+cu126", 90701, "ok"),
        ("2.10.0", 91002, "ok"),
        ("2.13.0+cpu", None, "note"),
    ):
        assert _doctor._convolutions(release, cudnn).state == state
    assert "cuDNN 9.10.2" in _doctor._convolutions("2.9.1", 91002).message
    assert {"triton", "torch and cuDNN"} <= set(names)
    cuda_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
    for capability, state, said in (
        ((7, 0), "problem", "no kernels for this card"),
        ((6, 1), "problem", "whl/cu126"),
        ((7, 5), "note", "use memory.dtype=float16"),
        ((8, 9), "ok", "sm_89"),  # by the kernels of sm_86
        ((10, 3), "ok", ""),
        ((12, 1), "ok", ""),
        ((13, 0), "ok", ""),  # by compute_120
    ):
        found = _doctor._capability("cuda:0", f"Card, sm_{capability[0]}{capability[1]}",
                                    *capability, cuda_13)  # fmt: skip
        assert (found.state, said in found.message) == (state, True), found
    volta = ["sm_70", "sm_80", "compute_80"]
    assert _doctor._capability("cuda:0", "V100", 7, 0, volta).state == "note"
    for version, cuda, state, said in (
        (None, "13.0", "note", "no NVIDIA driver"),
        ("570.86.10", "13.0", "problem", "needs 580 or newer"),
        ("570.86.10", "12.8", "problem", "torch finds no device"),
        ("510.47", "12.6", "problem", "needs 525"),
    ):
        monkeypatch.setattr(_doctor, "_driver_version", lambda version=version: version)
        found = _doctor._driver(cuda)
        assert (found.state, said in found.message) == (state, True), found
    words = ["kernel.schedule={name: linear}", "data.preprocessing.shape=[64,64,64]"]
    (line,) = _doctor._global_mean("wavelet_64", words)
    assert line.state == "problem"
    # the linear schedule ends at alpha^2 = 4.04e-5 (Ho et al. 2020); 32^3 state voxels
    assert float(re.search(r"is ([\d.e-]+)", line.message)[1]) == pytest.approx(1.32, rel=0.01)
    (good,) = _doctor._global_mean("wavelet_64", [])
    assert good.state == "ok"


def test_train_localize_evaluate_report(program, base, run, tmp_path):
    """The way of a user: lesions in new files are mapped, compared and shown."""
    data = tmp_path / "data"
    for i in range(3):
        image = phantom(50 + i) / 2
        lesion = np.zeros(image.shape, np.uint8)
        lesion[3:5, 3:5, 2 + i : 4 + i] = image[3:5, 3:5, 2 + i : 4 + i] != 0
        image[lesion > 0] = 190  # brighter than anything healthy
        affine = np.diag([3.0, 3, 3, 1])
        save(data / f"p{i}_T1w.nii.gz", image, affine)
        save(data / f"p{i}_mask.nii.gz", lesion, affine)
    words = ("threshold.min_volumes=2", "post=[]")
    for method in ("intensity", "scan", "atlas"):
        out = tmp_path / "maps" / method
        assert (
            program("localize", data, "--run", run, "-o", out, "--method", method, *words)[0] == 0
        )
    folders = [tmp_path / "maps" / m for m in ("intensity", "scan", "atlas")]
    report = ("-o", tmp_path / "report", "--report", "--replicates", 50)
    code, table, complaint = program("evaluate", *folders, "--truth", data, *report)
    assert code == 0, complaint
    assert "voxel AP" in table
    assert "Dice, validation threshold" in table
    assert "Dice, healthy-FPR threshold" in table
    found = json.loads((tmp_path / "report" / "evaluation.json").read_text())["methods"]
    assert found["intensity"]["measures"]["voxel_ap"]["value"] == pytest.approx(1)
    assert found["scan"]["measures"]["voxel_ap"]["value"] < 1
    assert "best other" in table
    html = (tmp_path / "report" / "report.html").read_text()
    assert html.count("<figure") == 3  # curves
    assert html.count('loading="lazy"') == 3
    assert len([*(tmp_path / "report" / "report_cases").glob("*.html")]) == 3
    for name in ("froc", "reliability", "risk_coverage"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    scan = found["scan"]
    assert scan["measures"]["network_calls"]["value"] > 0
    assert found["intensity"]["measures"]["network_calls"]["value"] == 0
    assert scan["curves"]["reliability"] is not None
    assert 0 <= scan["measures"]["aurc"]["value"] <= 1  # two seeds
    assert found["intensity"]["curves"]["risk_coverage"] is None
    assert "maps/intensity: left out: risk-coverage (no uncertainty maps" in complaint
    assert "scope" in html
    sidecar = json.loads((folders[1] / "p0_desc-anomaly_map.json").read_text())
    assert set(sidecar["thresholds"]) == {"healthy_fpr", "findings_per_volume", "validation"}
    assert sidecar["threshold"] == sidecar["thresholds"]["findings_per_volume"]
    written = np.asarray(nib.load(folders[1] / "p0_desc-anomaly_map.nii.gz").dataobj)
    mask = np.asarray(nib.load(folders[1] / "p0_desc-anomaly_mask.nii.gz").dataobj)
    foreground = np.asarray(nib.load(folders[1] / "p0_desc-foreground_mask.nii.gz").dataobj)
    np.testing.assert_array_equal(mask > 0, (written > sidecar["threshold"]) & (foreground > 0))


def test_calibrate_stores_what_localize_uses(program, run):
    code, said, _ = program(
        "calibrate", "--run", run, "--method", "intensity", "threshold.min_volumes=2"
    )
    assert code == 0
    assert re.search(r"calibrated on 4 volumes, validation threshold [\d.]+", said)
    assert list((Path(run) / "calibration" / "intensity").glob("*.safetensors"))


# --- the grammar ---------------------------------------------------------------------------------

OF_A_RUN = ("localize", "segment", "translate", "sample", "calibrate", "tune", "evaluate")


def parameters():
    import typer

    for name, command in typer.main.get_command(cli.app).commands.items():
        for parameter in command.params:
            yield name, parameter


def test_the_grammar_is_one_for_all_commands():
    options = {}
    for name, parameter in parameters():
        options.setdefault(name, {}).update(dict.fromkeys(parameter.opts, parameter))
        assert not {"-i", "--input", "--out"} & set(parameter.opts), name
        if {"-o", "--output"} & set(parameter.opts):
            assert {"-o", "--output"} <= set(parameter.opts), name
    for name in OF_A_RUN:
        # the shipped model localizes where no run is named, and results are compared without one
        assert options[name]["--run"].required == (name not in ("localize", "evaluate"))
    # data may be held against a run, or prepared as it was
    named = {name for name, found in options.items() if "--run" in found}
    assert named == {*OF_A_RUN, "check", "prepare"}


def test_help_texts_stand_alone():
    for name, parameter in parameters():
        text = parameter.help or ""
        assert re.match(r"[A-Z].* .*\.$", text), f"{name} {parameter.opts}: {text!r}"


def test_a_word_with_an_equals_sign_is_an_override_and_a_path_has_a_folder():
    from volumediff.commands._options import inputs_and_words

    given = ["a.nii.gz", "sampler.steps=2", "./a=b.nii", "/d/x=1/c.nii", "post=[{name: a/b}]"]
    paths, words = inputs_and_words(given)
    assert paths == [Path("a.nii.gz"), Path("a=b.nii"), Path("/d/x=1/c.nii")]
    assert words == ["sampler.steps=2", "post=[{name: a/b}]"]


def test_defaults_are_those_of_the_python_functions():
    import volumediff
    from volumediff.commands._options import defaults

    pairs = {
        "localize": volumediff.localize_files,
        "segment": volumediff.segment_files,
        "translate": volumediff.translate_files,
        "sample": volumediff.sample_files,
        "calibrate": volumediff.Run.calibrate,
        "tune": volumediff.Run.tune,
        "evaluate": volumediff.evaluate,
        "prepare": volumediff.prepare,
        "draw": volumediff.draw,
        "restore": volumediff.restore,
        "check": volumediff.check,
        "plan": volumediff.plan,
        "push": volumediff.push,
    }
    seen = 0
    for name, parameter in parameters():
        if name not in pairs:
            continue
        known = {**defaults(volumediff.load), **defaults(pairs[name])}
        own = (
            "overrides",
            "memory",
            "read",
            "output",
            "report",
        )  # flags, lists, and where commands write
        if parameter.name in known and parameter.name not in own:
            assert parameter.default == known[parameter.name], f"{name} {parameter.name}"
            seen += 1
    assert seen > 50


def test_doctor_reads_the_version_of_the_driver(tmp_path, monkeypatch):
    file = tmp_path / "version"
    monkeypatch.setattr(_doctor, "DRIVER", file)
    assert _doctor._driver_version() is None
    for text, version in (
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 2023",
            "535.104.05",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release",
            "580.65.06",
        ),
    ):
        file.write_text(text)
        assert _doctor._driver_version() == version
