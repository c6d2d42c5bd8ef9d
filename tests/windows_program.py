"""What a user does first, on a pretended Windows: check, train, go on, localize."""

import sys
from pathlib import Path

import pretend_windows

pretend_windows.install()


def program(*words):
    from volumediff import cli

    sys.argv = ["volumediff", *map(str, words)]
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code
    raise AssertionError("the program did not end")


def main():
    from tiny_app import QUICK, WINDOW
    from tiny_runs import tiny, write_data

    from volumediff.training.loop import train

    base = Path(sys.argv[1])
    data, run = write_data(base / "data", cases=8), base / "run"
    assert program("check", data) == 0
    words = ("data.split={validation: 0.2, calibration: 0.5}", WINDOW, "data.workers=1")
    for steps in (2, 3):  # begins, and goes on
        train(tiny(data, run, *words, f"optim.steps={steps}", "save_every=1"))
    image = data / "sub-00_T1w.nii.gz"
    assert program("localize", image, "--run", run, "-o", base / "out", *QUICK) == 0
    assert program("doctor") == 0


if __name__ == "__main__":
    main()
