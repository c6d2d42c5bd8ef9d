r"""MAISI (NVIDIA-Medtech/NV-Generate-CTMR): latents of CT and MRI, by modality and voxel size.

The networks are read as `monai_unet` reads them. What is MAISI's own:

- rectified flow. Its network gives z_0 - eps, the velocity of our flow with the opposite sign, so
  that the head is negated, and reads 1000 t where the older ddpm-ct reads a step k = 0..999;
- the modality, a class by the names of its modality_mapping.json. Class 0, unknown, is hidden in
  training where others are guided away from it: our null class. The run stands for one modality,
  the first of `recipe.values`, and keeps all others;
- voxel sizes, and for ddpm-ct the regions of the body at the top and bottom of the volume, which
  the network reads in hundredths: they are attributes in millimetres, and 0 or 1.

Its sampler stores times in float16 and cuts the end of every step to a whole number of
thousandths. At 30 steps with the transform of times this moves steps by up to a thousandth of the
way, and the network is asked at other times than those that the states have; our samplers step
between the exact times.

References:
    Guo et al. (2024), MAISI, arXiv:2409.11169; Zhao et al. (2025), MAISI-v2, arXiv:2508.05772
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from volumediff.data.grid_attributes import SPACING
from volumediff.errors import DataError, UsageError
from volumediff.importers._base import ForeignCheckpoint, Importer, Origin, Scaling, Shapes
from volumediff.importers._monai import prefix, sized
from volumediff.importers.monai_unet import STEM, MonaiUNetImporter

__all__ = ["Maisi"]

HEAD_SIZE = 32
CLASSES = 128
HUNDREDTHS = (0.0, 0.01)
CLASS_TABLE = "class_embedding.weight"
TOP = "top_region_index_layer.0.weight"
NAMED = {
    "ct": 1,
    "ct_wo_contrast": 2,
    "ct_contrast": 3,
    "mri": 8,
    "mri_t1": 9,
    "mri_t2": 10,
    "mri_flair": 11,
    "mri_pd": 12,
    "mri_dwi": 13,
    "mri_adc": 14,
    "mri_ssfp": 15,
    "mri_mra": 16,
    "mri_t1c": 17,
    "mri_swi": 20,
    "mri_t1_skull_stripped": 29,
    "mri_t2_skull_stripped": 30,
    "mri_flair_skull_stripped": 31,
    "mri_swi_skull_stripped": 32,
    "mri_mra_skull_stripped": 33,
}
STRIPPED = "_skull_stripped"
REGIONS = ("head", "chest", "abdomen", "pelvis")
# What else NV-Generate publishes: a name in such a checkpoint, what it is and what to do.
OTHERS = {
    "controlnet_cond_embedding.conv_in.conv.weight": "MAISI's ControlNet, which is not supported; "
    "give the diffusion model diff_unet_3d_*.pt",
    "post_quant_conv.conv.weight": "an autoencoder; import that of images with the kind "
    "monai_autoencoder and name its run as space.autoencoder. That of masks is not supported",
    "attn2.to_k.weight": "MAISI's model of masks, which is not supported; give the model of "
    "images diff_unet_3d_*.pt",
}
HOUNSFIELD = {"name": "window", "center": 0.0, "width": 2000.0}
# Its upper limit is the percentile 99.5 of the whole volume, of whose 10 litres a head fills about
# 4 and a brain 1.4: the same voxels as these percentiles of the foreground.
HEAD_PERCENTILE, BRAIN_PERCENTILE = 98.7, 96.4


@dataclass(frozen=True)
class Variant:
    """One of the published diffusion models.

    Arguments:
        repository: on the Hugging Face hub
        licence: of its weights
        modality: the class of the settings that are published with it
        spacing_mm, shape: of the volumes of these settings
        flow: whether it is a rectified flow
    """

    repository: str
    licence: str
    modality: str
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    flow: bool = True


OPEN = "NVIDIA Open Model License"
CT = "nvidia/NV-Generate-CT"
VARIANTS = {
    "ddpm-ct": Variant(CT, OPEN, "ct", (1.0, 1.0, 0.75), (256, 256, 128), flow=False),
    "rflow-ct": Variant(CT, OPEN, "ct", (1.7, 1.7, 2.0), (256, 256, 128)),
    "rflow-mr": Variant(
        "nvidia/NV-Generate-MR",
        "NVIDIA OneWay Noncommercial License",
        "mri_t1",
        (1.25, 1.0, 1.0),
        (128, 256, 256),
    ),
    "rflow-mr-brain": Variant(
        "nvidia/NV-Generate-MR-Brain", OPEN, "mri_t1", (0.94, 0.94, 1.36), (256, 256, 128)
    ),
}


class Maisi(Importer):
    """Diffusion models of NV-Generate.

    Arguments:
        variant: which one; those with rectified flow have the same tensors, so that it has to be
            said, and ddpm-ct is known by its own
        modality: what the run stands for, by its name in modality_mapping.json, such as mri_t2 or
            mri_t1_skull_stripped; None for that of the published settings
    """

    def __init__(
        self,
        variant: Literal["ddpm-ct", "rflow-ct", "rflow-mr", "rflow-mr-brain"] | None = None,
        modality: str | None = None,
    ) -> None:
        self.variant, self.modality = variant, modality
        self.network = MonaiUNetImporter(HEAD_SIZE)

    def origin(self, source: ForeignCheckpoint) -> Origin:
        name, variant = self._variant(source)
        return Origin(
            name,
            f"https://huggingface.co/{variant.repository}",
            variant.licence,
            stripped=self._modality(source).endswith(STRIPPED),
        )

    def config(self, source: ForeignCheckpoint) -> dict[str, Any]:
        _, variant = self._variant(source)
        modality = self._modality(source)
        tree = self.network.config(source)
        if modality.startswith("mri"):
            high = BRAIN_PERCENTILE if modality.endswith(STRIPPED) else HEAD_PERCENTILE
            intensity = {"name": "percentile", "low": 0.0, "high": high}
        else:
            intensity = HOUNSFIELD
        tree["data"] = {
            "preprocessing": {
                "spacing_mm": list(variant.spacing_mm),
                "shape": list(variant.shape),
                "intensity": intensity,
                "centre": "volume",
            }
        }
        ends = ("top", "bottom") if not variant.flow else ()
        scalars = [f"{end}_{region}" for end in ends for region in REGIONS]
        scalars += SPACING
        if variant.flow:
            schedule = {"name": "rectified"}
            tree["kernel"] = {"name": "gaussian", "schedule": schedule, "prediction": "u"}
            tree["network"]["offset"] = 0.0
            values = [modality, *(name for name in _names() if name != modality)]
            tree["recipe"] = {"name": "modality_conditional", "values": values}
        else:
            tree["recipe"] = {"name": "healthy"}
        tree["recipe"]["scalars"] = scalars
        tree["optim"] = {"lr": 1e-5}
        return tree

    def scaling(self, source: ForeignCheckpoint) -> Scaling:
        _, variant = self._variant(source)
        return [HUNDREDTHS] * (len(SPACING) + (0 if variant.flow else 2 * len(REGIONS)))

    def tensors(self, source: ForeignCheckpoint, shapes: Shapes) -> dict[str, Tensor]:
        _, variant = self._variant(source)
        first = NAMED[self._modality(source)]
        found = self.network.tensors(source, shapes)
        if not variant.flow:
            return found
        rows = found["network.embedding.label.weight"][:-1]
        others = [i for i in range(1, CLASSES) if i != first]
        head = {f"network.hourglass.head.{n}" for n in ("weight", "bias")}
        return {
            **found,
            "network.embedding.label.weight": rows[[first, *others, 0]],
            **{name: -found[name] for name in head},
        }

    def _variant(self, source: ForeignCheckpoint) -> tuple[str, Variant]:
        """Which of the published models it is.

        Raises:
            DataError: none of them
            UsageError: it has to be said, or another was said
        """
        for end, what in OTHERS.items():
            if any(name.endswith(end) for name in source.left):
                raise DataError(f"{source.where}: is {what}.")
        p = prefix(source, STEM)
        regions, table = f"{p}{TOP}" in source, f"{p}{CLASS_TABLE}" in source
        if not regions and not table:
            raise DataError(
                f"{source.where}: is no diffusion model of NV-Generate, which has an embedding of "
                "body regions (ddpm-ct) or of modalities (the others); for other models of MONAI "
                "use the kind monai_unet."
            )
        if table and sized(source, f"{p}{CLASS_TABLE}", axes=2)[0] != CLASSES:
            raise DataError(
                f"{source.where}: has {source.shape(f'{p}{CLASS_TABLE}')[0]} classes, expected "
                f"the {CLASSES} of NV-Generate; use the kind monai_unet."
            )
        fits = [name for name, v in VARIANTS.items() if v.flow != regions]
        name = self.variant or (fits[0] if len(fits) == 1 else None)
        if name is None:
            raise UsageError(
                f"{source.where}: no tensor tells which model it is; give importer.variant=NAME, "
                f"one of {', '.join(fits)}."
            )
        if name not in fits:
            raise UsageError(
                f"importer.variant={name}: expected {' or '.join(fits)} by the tensors of "
                f"{source.where}."
            )
        return name, VARIANTS[name]

    def _modality(self, source: ForeignCheckpoint) -> str:
        name, variant = self._variant(source)
        modality = self.modality or variant.modality
        ours = [n for n in NAMED if n.startswith("mri") == name.startswith("rflow-mr")]
        if name == "ddpm-ct":
            ours = ["ct"]
        if modality not in ours:
            raise UsageError(
                f"importer.modality={modality}: expected one of {', '.join(ours)} for {name}."
            )
        return modality


def _names() -> list[str]:
    """Names of the classes but for the unknown, in their order; those without one by number."""
    names = {number: name for name, number in NAMED.items()}
    return [names.get(i, f"class_{i}") for i in range(1, CLASSES)]
