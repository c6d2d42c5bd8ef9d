"""Small data sets with label maps, and folders as methods would write them."""

import json

import numpy as np
from tiny_app import save

from volumediff.outputs.ledger import open_ledger

AFFINE = np.diag([2.0, 2, 3, 1])
SHAPE = (14, 12, 10)


def ball(centre, radius):
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    apart = (grid - np.asarray(centre).reshape(3, 1, 1, 1)) * np.array([2, 2, 3]).reshape(
        3, 1, 1, 1
    )
    return np.sqrt((apart**2).sum(axis=0)) < radius


def truth_of(i):
    """A large label 1 and a small label 2, which the third patient does not have."""
    label = np.zeros(SHAPE, np.uint8)
    label[ball((4 + i % 2, 5, 4), 6.5)] = 1
    if i != 2:
        label[ball((10, 8, 6), 3.5)] = 2
    return label


def write_truth(root, *, cases=6, readers=0):
    """<case>_T1w and <case>_mask, or a mask of each reader."""
    rng, truths = np.random.default_rng(1), {}
    for i in range(cases):
        label, case = truth_of(i), f"p{i}"
        image = (100 + 60 * (label > 0) + 5 * rng.normal(size=SHAPE)).astype(np.float32)
        save(root / f"{case}_T1w.nii.gz", image, AFFINE)
        if not readers:
            save(root / f"{case}_mask.nii.gz", label, AFFINE)
        for r in range(readers):
            own = np.where(ball((4 + i % 2, 5, 4), 5.5 + r), 1, 0).astype(np.uint8)
            save(root / f"{case}_reader-{r + 1}_mask.nii.gz", own, AFFINE)
        truths[case] = label
    return truths


def write_segmentations(folder, labels, *, samples=0, probabilities=True, method=None, seed=0):
    """What `segment` writes: label maps, probabilities, samples, entropy, JSON, ledger."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    values = sorted({int(v) for m in labels.values() for v in np.unique(m)} - {0})
    for i, (case, label) in enumerate(labels.items()):
        save(folder / f"{case}_dseg.nii.gz", label, AFFINE)
        every = {}
        for v in values if probabilities else ():
            noise = rng.uniform(0, 0.2, SHAPE)
            every[v] = np.where(label == v, 0.85, 0.02) * (1 - noise)
            save(folder / f"{case}_label-{v}_probseg.nii.gz", every[v].astype("f4"), AFFINE)
        if every:
            rest = 1 - sum(every.values())
            save(folder / f"{case}_label-0_probseg.nii.gz", rest.astype("f4"), AFFINE)
            whole = np.stack([rest, *every.values()]).clip(1e-9, 1)
            entropy = -(whole * np.log(whole)).sum(axis=0)
            save(folder / f"{case}_desc-entropy_map.nii.gz", entropy.astype("f4"), AFFINE)
        for n in range(samples):
            drawn = np.where(rng.random(SHAPE) < 0.03, 0, label).astype(np.uint8)
            save(folder / f"{case}_desc-sample{n}_dseg.nii.gz", drawn, AFFINE)
        facts = {
            "case": case,
            "method": method or folder.name,
            "inputs": {
                "image": {"file": f"{case}_T1w.nii.gz", "sha256": f"{i:016d}".ljust(64, "0")}
            },
            "volumes_ml": {str(v): float((label == v).sum()) * 0.012 for v in values},
            "network_calls": 20,
        }
        (folder / f"{case}_dseg.json").write_text(json.dumps(facts))
        with open_ledger(folder, job="j") as ledger:
            ledger.done(case, inputs={}, outputs=[], facts={"seconds": 2.0 + i})
    return folder


def shifted(labels, by=1):
    return {case: np.roll(label, by, axis=0) for case, label in labels.items()}
