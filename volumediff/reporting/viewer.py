"""The viewer of one case: slices and a rendering of a `Scene`, inside one HTML file.

NiiVue draws where WebGL 2 is there, a canvas of our own where it is not or stops, and where two
layers stand side by side; state, controls, outlines and numbers are the same for both. Volumes lie
in the page as gzip in base64, since a browser refuses to read data beside a page that it opened
from disk. A script beside it may be loaded: the library is one file for all pages of a folder, and
a page that is mailed alone has the slices and no 3D.
"""

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip

from volumediff.colours import STOPS, label_colour
from volumediff.data.label_names import label_name
from volumediff.outputs.export import finite
from volumediff.reporting.scene import Scene, limits

__all__ = ["LIBRARY", "Viewer", "library", "nifti_bytes", "viewer"]

LIBRARY = "niivue.js"  # beside the pages

SCRIPTS = ("canvas_slices.js", "niivue_slices.js", "viewer.js")
LEVELS = 65535
# Step of a constant volume, of which the read-out shows as many digits as this has.
FINEST = 1e-6
# Where the list of places is cut; the files have all of them.
MOST_PLACES = 60


@dataclass(frozen=True)
class Viewer:
    """Parts of a page that has a viewer.

    Arguments:
        html: the viewer, with its volumes
        styles: CSS that it needs
        scripts: JavaScript that runs after the body
    """

    html: Sequence[str]
    styles: Sequence[str]
    scripts: Sequence[str]


def viewer(scene: Scene) -> Viewer:
    """The viewer of a case. A page has one, and the file of `library` beside it.

    Arguments:
        scene: what it shows; a large one is thinned out, and the page says so
    """
    small, step = scene.thinned()
    volumes: dict[str, np.ndarray] = {}
    described = _described(small, step, volumes)
    described["title"] = scene.title
    blocks = [_block(f"volume-{n}", nifti_bytes(a, small)) for n, a in enumerate(volumes.values())]
    # "<" would end the block early if a name held a tag
    text = json.dumps(finite(described)).replace("<", "\\u003c")
    thin = "" if step == (1, 1, 1) else _thinned_note(scene, step)
    html = [
        '<div id="case-viewer" class="viewer" hidden></div>',
        "<noscript><p>The viewer needs JavaScript; the pictures of this page do not.</p>"
        "</noscript>",
        *([f'<p class="sub">{escape(thin)}</p>'] if thin else []),
        f'<script type="application/json" id="scene">{text}</script>',
        *blocks,
    ]
    return Viewer(
        html=html,
        styles=[_file_bytes("viewer.css").decode()],
        scripts=["\n".join(_file_bytes(name).decode() for name in SCRIPTS)],
    )


def nifti_bytes(array: np.ndarray, scene: Scene) -> bytes:
    """A volume as NIfTI-1 on a grid of its own: axes R, A, S, centred at zero.

    Values are stored in 16 bits: whole numbers exactly where their range allows, others to
    1/131 070 of their range; masks and labels in 8. The grid is upright since slices are shown
    along the axes of the file; millimetres of the patient come from `Scene.affine`.
    """
    stored, slope, inter = _stored(array)
    header = nib.Nifti1Header()
    header.set_data_shape(stored.shape)
    header.set_data_dtype(stored.dtype)
    affine = np.diag([*scene.spacing_mm, 1.0])
    affine[:3, 3] = [-s * (n - 1) / 2 for s, n in zip(scene.spacing_mm, scene.shape, strict=True)]
    header.set_sform(affine, code="aligned")
    header.set_qform(affine, code="aligned")
    header.set_slope_inter(slope, inter)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    return header.binaryblock + bytes(4) + stored.tobytes(order="F")


def _stored(array: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Integers, slope and intercept of a volume."""
    if array.dtype in (np.bool_, np.uint8):
        return array.astype(np.uint8), 1.0, 0.0
    values = np.nan_to_num(array.astype(np.float64))
    low, high = float(values.min()), float(values.max())
    whole = high - low <= LEVELS and bool(np.array_equal(values, np.rint(values)))
    # NIfTI keeps slope and intercept in single precision, with which the voxels are then read
    slope = 1.0 if whole else float(np.float32((high - low) / LEVELS or FINEST))
    inter = float(np.float32(low))
    return np.clip(np.rint((values - inter) / slope), 0, LEVELS).astype("<u2"), slope, inter


def _described(
    scene: Scene, step: tuple[int, int, int], volumes: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What the script is told; the volumes are collected under their numbers."""

    def kept(array: np.ndarray) -> str:
        name = f"volume-{len(volumes)}"
        volumes[name] = array
        return name

    maps = []
    for name, m in scene.maps.items():
        span = limits(m.array, floor=max(0.0, float(m.array.min())))
        maps.append(
            {"name": name, "id": kept(m.array), "unit": m.unit, "colours": m.colours,
             "low": span[0], "high": span[1], "least": float(m.array.min()),
             "most": float(m.array.max())}
        )  # fmt: skip
    values = sorted({int(v) for x in scene.labels.values() for v in np.unique(x)} - {0})
    return {
        "note": scene.note,
        "shape": scene.shape,
        "spacing": scene.spacing_mm,
        "affine": None if scene.affine is None else scene.affine.tolist(),
        "start": scene.start,
        "one_window": scene.one_window,
        "images": [
            {"name": n, "id": kept(x), "window": limits(x)} for n, x in scene.images.items()
        ],
        "maps": maps,
        "outlines": [
            {"name": n, "id": kept(o.mask), "colour": o.colour, "inside": o.inside,
             "empty": not o.mask.any(), "shown": o.shown and bool(o.mask.any())}
            for n, o in scene.outlines.items()
        ],
        "labels": [{"name": n, "id": kept(x)} for n, x in scene.labels.items()],
        "values": [
            {"value": v, "name": label_name(v, scene.label_names), "colour": label_colour(v)}
            for v in values
        ],
        "places": [
            {"name": p.name, "at": _voxel(p.at_mm, scene), "text": p.text}
            for p in scene.places[:MOST_PLACES]
        ],
        "scales": {name: list(STOPS[name]) for name in {m.colours for m in scene.maps.values()}},
    }  # fmt: skip


def _voxel(point_mm: Sequence[float], scene: Scene) -> list[int] | None:
    """The voxel of a point; None where the scene does not know its millimetres."""
    if scene.affine is None:
        return None
    inverse = np.linalg.inv(scene.affine)
    at = inverse[:3, :3] @ np.asarray(point_mm, float) + inverse[:3, 3]
    return [min(max(round(v), 0), n - 1) for v, n in zip(at.tolist(), scene.shape, strict=True)]


def _thinned_note(scene: Scene, step: tuple[int, int, int]) -> str:
    size, shown = " × ".join(map(str, scene.shape)), " × ".join(map(str, step))
    return f"The volume has {size} voxels; one of every {shown} is shown. The file has all."


def _block(name: str, content: bytes) -> str:
    text = base64.b64encode(igzip.compress(content, 2, mtime=0)).decode()
    return f'<script type="application/octet-stream" id="{name}">{text}</script>'


@cache
def _file_bytes(name: str) -> bytes:
    return files("volumediff.reporting").joinpath(name).read_bytes()


@cache
def library() -> bytes:
    """The script that pages with a viewer load from their own folder, under the name `LIBRARY`."""
    return gzip.decompress(_file_bytes("niivue/niivue.umd.js.gz"))
