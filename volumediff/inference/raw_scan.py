"""A scan as it comes from the scanner, brought to where a run's volumes lie, and results home.

    scan ─ brain extraction, affine alignment, N4 where the run's data had it ─▶ template ─ run ─▶
    map on the run's grid ─ one resampling ─▶ the scanner's own grid

It is `prepare`, `localize` and `restore` in memory. A volume that already lies in the template's
space is left as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from volumediff.alignment.aligning import Aligned, BrainMask, Steps, align_volumes
from volumediff.alignment.quality import flags, measured
from volumediff.data.alignment_geometry import Alignment
from volumediff.data.grid import canonical_grid
from volumediff.data.preprocessing_record import PreprocessingRecord
from volumediff.data.remarks import Remark
from volumediff.data.resampling import nearest_onto, onto
from volumediff.data.volume import Volume
from volumediff.outputs.input_grid import InputGrid, findings_alone
from volumediff.outputs.result_grid import ResultGrid
from volumediff.runs.inputs import Examination
from volumediff.runs.preparation import lies_in, look_of, shows_brain_alone, template_of
from volumediff.runs.stripping import stripped, strips, unaligned
from volumediff.samples.preparation_record import RunPreparation

__all__ = ["PreparedScan", "ScannerGrid", "prepared_scan"]


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A scan as a run's volumes were prepared.

    Arguments:
        examination: the same with its images, region and saliency on the template's grid
        alignment: of the first image; None where the scan stays where it lies
        facts: what was done and how well it went, for the record beside the map
        remarks: what looks wrong about it
    """

    examination: Examination
    alignment: Alignment | None
    facts: Mapping[str, Any]
    remarks: tuple[Remark, ...]

    def home(self, grid: InputGrid) -> ResultGrid:
        """The scanner's own grid, for results on the grid of the prepared volume."""
        if self.alignment is None:
            findings = (*grid.record.findings, *self.remarks)
            return replace(grid, record=replace(grid.record, findings=findings))
        return ScannerGrid(grid, self.alignment, self.remarks)


def prepared_scan(
    examination: Examination, preparation: RunPreparation | None
) -> PreparedScan | None:
    """The scan as the run's volumes were prepared; None where there is nothing to do.

    Raises:
        DataError: it cannot be registered or corrected
    """
    if strips(preparation):
        return _stripped_scan(examination, preparation)
    look = None if preparation is None else look_of(preparation)
    first = next(iter(examination.images.values()))
    if preparation is None or look is None or lies_in(first, look):
        return None
    template = template_of(preparation)
    assert template is not None, "it has a look"
    mask = BrainMask.none if shows_brain_alone(first) else BrainMask.template
    steps = Steps(mask=mask, strip=preparation.stripped, n4=preparation.n4)
    # the template's own 1 mm: the run's preprocessing resamples from there
    found = align_volumes(
        examination.images, None, template=template, target=template, steps=steps
    )
    name, alignment = next(iter(found.alignments.items()))
    quality = measured(found, template=template, steps=steps)
    warnings = flags(quality)
    return PreparedScan(
        _moved(examination, found, alignment),
        alignment,
        {
            "template": template.name,
            "brain_mask": steps.mask.value,
            "stripped": steps.strip,
            "n4": steps.n4,
            "aligned_channel": name,
            "native_to_template": alignment.matrix.tolist(),
            "volume_scale": alignment.volume_scale,
            "brain_ml": quality.native_ml,
            "similarity": quality.after,
            "warnings": warnings,
        },
        tuple(Remark("warning", "alignment", f"alignment: {text}") for text in warnings),
    )


def _stripped_scan(examination: Examination, preparation: RunPreparation) -> PreparedScan | None:
    """The scan without what is not brain, on its own grid."""
    images = stripped(examination.images)
    if images is None:
        return None
    warnings = unaligned(preparation)
    return PreparedScan(
        replace(examination, images=images),
        None,
        {"template": None, "stripped": True, "n4": False, "warnings": warnings},
        tuple(Remark("warning", "alignment", text) for text in warnings),
    )


def _moved(examination: Examination, found: Aligned, alignment: Alignment) -> Examination:
    """Everything on the template's grid."""
    target = alignment.template

    def there(x: np.ndarray, volume: Volume) -> Volume:
        return replace(volume, array=x, affine=target.affine, native=target)

    images = {name: there(x[None], examination.images[name]) for name, x in found.images.items()}
    region, saliency = examination.region, examination.saliency
    if region is not None:
        way = Alignment(region.native, target, alignment.matrix)
        region = there(way.apply_labels(region.array.astype(np.uint8)), region)
    if saliency is not None:
        way = Alignment(saliency.native, target, alignment.matrix)
        saliency = there(way.apply(saliency.array.astype(np.float32), fill=0.0), saliency)
    return replace(examination, images=images, region=region, saliency=saliency)


@dataclass(frozen=True, eq=False)
class ScannerGrid(ResultGrid):
    """The grid of a scan that was aligned with a template before it was prepared.

    Arguments:
        prepared: from the run's grid to the template's
        alignment: of the scan with the template
        remarks: for the record
    """

    prepared: InputGrid
    alignment: Alignment
    remarks: tuple[Remark, ...] = ()

    @property
    def record(self) -> PreprocessingRecord:
        """With the scan's own grid; steps, origin and limits are those of the template's."""
        record = self.prepared.record
        native = self.alignment.native
        return replace(
            record,
            native=native,
            canonical=canonical_grid(native),
            findings=(*record.findings, *self.remarks),
        )

    def image(
        self, array: Shaped[Tensor, "1 d h w"], *, beyond: float | None = None
    ) -> Float[np.ndarray, "1 od oh ow"]:
        values = array.detach().float().cpu()
        fill = min(0.0, float(values.min())) if beyond is None else beyond
        return self._home(values, fill=fill)

    def channels(self, array: Float[Tensor, "c d h w"]) -> Float[np.ndarray, "c od oh ow"]:
        record = self.prepared.record
        values = array.detach().float().cpu().numpy()
        restored = self.prepared.preprocessing.to_intensity(values, record)
        native = [
            self._home(torch.from_numpy(channel[None]), fill=low)
            for channel, (low, *_) in zip(restored, record.limits, strict=True)
        ]
        return np.concatenate(native)

    def label(
        self, array: Bool[Tensor, "1 d h w"] | UInt8[Tensor, "1 d h w"]
    ) -> UInt8[np.ndarray, "1 od oh ow"]:
        values = array.detach().to("cpu", torch.uint8)
        return nearest_onto(values, self.prepared.record.grid, self.alignment.moved).numpy()

    def mask(
        self, array: Bool[Tensor, "1 d h w"], *, volume_ml: float
    ) -> UInt8[np.ndarray, "1 od oh ow"]:
        affine = canonical_grid(self.alignment.native).affine
        return findings_alone(self.label(array), affine=affine, volume_ml=volume_ml)

    def _home(self, values: Tensor, *, fill: float) -> Float[np.ndarray, "1 od oh ow"]:
        return onto(values, self.prepared.record.grid, self.alignment.moved, fill=fill)[0].numpy()
