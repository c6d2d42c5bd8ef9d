"""Findings per healthy volume, lesion F1 and Dice of a demo's volumes, threshold by threshold.

volumediff demo -o DEMO
python benchmarks/operating_point.py DEMO --method scan
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from volumediff.anomaly.operating_point import left_out
from volumediff.anomaly.threshold import FindingsPerVolume, HealthyFPR
from volumediff.calibration.of_run import calibration_for, load_method
from volumediff.data.volume import read
from volumediff.metrics.components import without_small
from volumediff.metrics.lesions import found_by_recall, lesion_f1, lesions
from volumediff.runs.inputs import find_inputs, prepared_case
from volumediff.runs.trained import load_trained

RULES = [
    *((HealthyFPR(rate=rate), ml) for rate in (0.05, 0.01) for ml in (0.02, 0.5)),
    *((FindingsPerVolume(), ml) for ml in (0.1, 0.2, 0.5, 1.0, 2.0)),
    (FindingsPerVolume(affected=1.0), 0.5),
    (FindingsPerVolume(rate=2.0, affected=1.0), 0.5),
]
Maps = list[tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float, float]]]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--method", default="scan")
    parser.add_argument("--volumes", type=int, default=24, help="of the calibration")
    arguments = parser.parse_args()
    trained = load_trained(arguments.demo / "run", which="last")
    method = load_method(trained, arguments.method)
    calibration = calibration_for(trained, method, arguments.method, limit=arguments.volumes)
    maps: Maps = []
    for case in find_inputs(arguments.demo / "test", channels=None)[0]:
        ready = prepared_case(trained, case)
        example = trained.placed(
            ready.x,
            ready.foreground,
            ready.spacing_mm,
            condition=trained.condition(case.attributes),
        )
        a = method.finish(method.residual(trained.model, example, key=1), calibration.statistics)
        truth = read(arguments.demo / "test" / f"{case.id}_mask.nii.gz", kind="label").array[0]
        inside = example.foreground[0, 0].cpu().numpy()
        maps.append((a[0, 0].cpu().numpy(), inside, truth > 0, ready.spacing_mm))
    print(
        "| rule, smallest finding | findings per healthy volume | healthy volumes with any | "
        "most marked of one | lesion F1 | lesions found | Dice | left out: findings, any |"
    )
    for rule, ml in RULES:
        known = replace(
            calibration,
            finding_ml=ml,
            counts=tuple(part.steps(ml) for part in calibration.upper),
        )
        print(row(f"{rule}, {ml:g} ml", rule(known), ml, maps), left_out(rule, known))


def row(name: str, threshold: float, ml: float, maps: Maps) -> str:
    """The figures of one threshold as a line of Markdown."""
    found, healthy, marked, dice = [], [], [], []
    for a, inside, truth, spacing in maps:
        voxel_ml = float(np.prod(spacing)) / 1000
        mask = without_small((a > threshold) & inside, volume_ml=ml, voxel_ml=voxel_ml)
        one = lesions(torch.from_numpy(mask), torch.from_numpy(truth), spacing_mm=spacing)
        found.append(one)
        if truth.any():
            dice.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
        else:
            healthy.append(one.candidates)
            marked.append(mask.sum() / inside.sum())
    return (
        f"| {name} | {np.mean(healthy):.2f} | {np.mean(np.array(healthy) > 0):.0%} | "
        f"{max(marked):.2%} | {lesion_f1(found):.3f} | {found_by_recall(found):.3f} | "
        f"{np.mean(dice):.3f} |"
    )


if __name__ == "__main__":
    main()
