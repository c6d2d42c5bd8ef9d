# workplace: empty
# %% [markdown]
# # Localize and look at a case
#
# The model that ships with the program looks for a lesion in one volume. Everything happens in
# memory: the image is one of nibabel, and so are the results.
#
# There is no patient in this example. The subject is the MNI152 template under a random smooth
# deformation, with another contrast, a bias field and noise, and a hole is put into it.

# %%
import nibabel
import numpy as np

import volumediff
from volumediff.data.anomalies import insert
from volumediff.data.population import Population

SPACING_MM = (3.0, 3.0, 3.0)
population = Population(seed=1, shape=(51, 61, 51), spacing_mm=SPACING_MM)
subject = population.subject(10_000)
x, lesion = insert(subject.x, subject.foreground, kind="cavity", key=3, spacing_mm=SPACING_MM)

# %% [markdown]
# Intensities of an image have any unit, with 0 outside of the brain. The affine says where the
# voxels lie in millimetres, which is how the model knows the orientation.

# %%
intensities = ((x + 1) * 500 + 1) * subject.foreground
image = nibabel.Nifti1Image(intensities[0].numpy(), population.affine)
truth = lesion[0].numpy()
print(image.shape, f"{truth.sum() * np.prod(SPACING_MM) / 1000:.1f} ml of lesion")

# %% [markdown]
# ## Localize
#
# `t1w` is the shipped model. It brings its calibration, so that the result has a threshold, a mask
# and findings.

# %%
run = volumediff.load("t1w")
result = run.localize(image)
print(result.statement)
for f in result.findings:
    print(f"{f.id}: {f.volume_ml:.1f} ml, probability {f.probability:.2f}, {f.place.laterality}")

# %% [markdown]
# ```text
# 001: 46.2 ml, probability 0.50, left
# 002: 1.3 ml, probability 0.07, right
# ```
#
# Every array lies as the image does: voxel (i, j, k) of the map is voxel (i, j, k) of the image.

# %%
assert result.map.shape == image.shape
overlap = 2 * (result.mask & truth).sum() / (result.mask.sum() + truth.sum())
print(f"score {result.score:.2f}, threshold {result.threshold:.2f}, Dice {overlap:.2f}")

# %% [markdown]
# ## Look
#
# `plot` draws slices through the highest value of the map.

# %%
result.plot().savefig("localize_a_case.png", dpi=80)

# %% [markdown]
# ![Slices of the volume, its map and its mask](../images/examples/localize_a_case.png)
#
# The map as a file opens in every viewer of NIfTI; `save` writes all that the command
# `volumediff localize` writes.

# %%
result.to_nibabel("map").to_filename("map.nii.gz")
for path in result.save("maps", case="sub-10000"):
    print(path)
