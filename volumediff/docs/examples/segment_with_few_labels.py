# workplace: labelled
# %% [markdown]
# # Segment with few labels
#
# A diffusion model learns six volumes without looking at a label; its network goes on as a
# segmentation network with labels of two of them. Beside it stands the same network, trained on
# the two labelled volumes alone. Six other volumes are segmented by both.
#
# `DATA` holds drawn volumes with a bright lesion in each, in BIDS. Sizes are such that the example
# ends in about a minute, and so few steps on so few volumes say nothing about the two methods.

# %%
import matplotlib.pyplot as plt
import nibabel
import numpy as np

import volumediff

data = {
    "root": "DATA",
    "preprocessing": {"spacing_mm": 5.0, "shape": [32, 40, 32]},
    "workers": 0,
}
network = {"name": "unet", "widths": [16, 32], "blocks": 1, "groups": 4}
optim = {"lr": 2e-3, "warmup": 10, "batch_size": 2, "ema": 0.95}
validation = {"every": 100, "volumes": 1, "previews": 0}

# %% [markdown]
# ## Without labels
#
# The recipe `healthy` of the shipped configuration learns volumes as they are. `only` chooses
# cases by the columns of `participants.tsv`.

# %%
unlabelled = volumediff.train(
    "wavelet_64",
    output="runs/unlabelled",
    data={**data, "only": {"sex": "M"}, "split": {"validation": 0.17, "calibration": 0.0}},
    network=network,
    optim={**optim, "steps": 100},
    validation={**validation, "best": None},
)

# %% [markdown]
# ## With few labels
#
# `rousseau` goes on with the weights of the run that `start_from` names; `unet` starts from
# scratch. Of three labelled volumes two train and one validates.

# %%
labelled = {
    **data,
    "only": {"age": [26, 32, 38]},
    "split": {"validation": 0.34, "calibration": 0.0},
}
methods = {"rousseau": {"start_from": str(unlabelled)}, "unet": {}}
for method, start in methods.items():
    folder = volumediff.train(
        "wavelet_64",
        output=f"runs/{method}",
        method=method,
        data=labelled,
        network=network,
        optim={**optim, "steps": 100},
        validation=validation,
        **start,
    )
    run = volumediff.load(folder)
    test = [f"DATA/sub-{n:02d}/anat/sub-{n:02d}_T1w.nii.gz" for n in (3, 5, 7, 9, 11, 13)]
    volumediff.segment_files(run, test, f"labels/{method}")

# %% [markdown]
# ## Evaluate and look
#
# The Dice of every test volume, and the first one with its label and both segmentations.

# %%
results = volumediff.evaluate([f"labels/{method}" for method in methods], "DATA")
for each in results:
    print(each.method, f"Dice {each.measures['dice'].value:.2f}")

anatomy = "DATA/sub-03/anat/sub-03"
image = nibabel.load(f"{anatomy}_T1w.nii.gz").get_fdata()
shown = {"label": f"{anatomy}_label-lesion_mask.nii.gz"}
shown |= {m: f"labels/{m}/sub-03_dseg.nii.gz" for m in methods}
masks = {name: nibabel.load(path).get_fdata() > 0 for name, path in shown.items()}
k = masks["label"].sum((0, 1)).argmax()
figure, axes = plt.subplots(1, len(masks), figsize=(7, 3), layout="constrained")
for axis, (name, mask) in zip(axes, masks.items(), strict=True):
    axis.imshow(np.rot90(image[:, :, k]), cmap="gray")
    axis.contour(np.rot90(mask[:, :, k]), levels=[0.5], colors="#4cc9f0")
    axis.set(title=name, xticks=[], yticks=[])
figure.savefig("segment_with_few_labels.png", dpi=80)

# %% [markdown]
# ![One slice with the label and two segmentations](../images/examples/segment_with_few_labels.png)
