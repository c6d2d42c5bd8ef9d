# workplace: trained
# %% [markdown]
# # Train, calibrate and evaluate in Python
#
# A small wavelet pipeline learns twelve healthy volumes, and looks for lesions in three others.
# `DATA` holds the healthy volumes and `PATIENTS` the others, with masks of their lesions; both are
# drawn, and both are folders in BIDS.
#
# Sizes are such that the example ends in a minute. The model is accordingly weak: `volumediff demo
# --train` takes more volumes, more steps and a finer grid.

# %%
import matplotlib.pyplot as plt

import volumediff

folder = volumediff.train(
    "wavelet_64",
    output="runs/example",
    data={
        "root": "DATA",
        "preprocessing": {"spacing_mm": 5.0, "shape": [32, 40, 32]},
        "split": {"validation": 0.1, "calibration": 0.42},
        "workers": 0,
    },
    network={"name": "unet", "widths": [16, 32], "blocks": 1, "groups": 4, "coordinates": True},
    recipe={"name": "healthy", "atlas": True},
    optim={"steps": 200, "lr": 2e-3, "warmup": 20, "batch_size": 2, "ema": 0.98},
    validation={"every": 200, "volumes": 1, "previews": 0},
)
run = volumediff.load(folder, which="last")

# %% [markdown]
# ## Calibrate
#
# `scan` gives its map in units of what the model does on healthy volumes at the same place, and
# its threshold leaves at most one finding per healthy volume on average. Both come from the five
# volumes that the run has set aside for calibration.

# %%
calibration = run.calibrate("scan")

# %% [markdown]
# ## Localize and evaluate
#
# `evaluate` refuses volumes that the run has seen. With three patients it gives no intervals.

# %%
for method in ("scan", "atlas", "intensity"):
    volumediff.localize_files(run, "PATIENTS", f"maps/{method}", method=method)
results = volumediff.evaluate([f"maps/{m}" for m in ("scan", "atlas", "intensity")], "PATIENTS")
aps = {r.method: r.measures["voxel_ap"].value for r in results}
print({method: round(ap, 3) for method, ap in aps.items()})

# %% [markdown]
# ```text
# {'scan': 0.029, 'atlas': 0.012, 'intensity': 0.457}
# ```
#
# The lesions here are bright, and brightness alone finds them best: a baseline without a network
# wins against a model of two hundred steps. Every evaluation deserves its baselines.
#
# ## Look
#
# The average precision of every method, and the first patient by the first method.

# %%
figure, axes = plt.subplots(figsize=(5, 2.2), layout="constrained")
axes.barh(list(aps), list(aps.values()), color="#6a95c8")
axes.invert_yaxis()
axes.set_xlabel("voxel AP, mean over three patients")
figure.savefig("train_and_evaluate.png", dpi=100)
result = run.localize("PATIENTS/sub-21/anat/sub-21_T1w.nii.gz", method="scan")
result.plot().savefig("train_and_evaluate_case.png", dpi=80)

# %% [markdown]
# ![Voxel AP of three methods](../images/examples/train_and_evaluate.png)
#
# ![Slices of the first patient, map and mask](../images/examples/train_and_evaluate_case.png)
