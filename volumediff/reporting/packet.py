"""A packet: one finding as pictures and text, for a reader or a vision-language model.

findings/<case>/<id>/image.png        the volume in three planes through the peak
                     overlay.png      the map over it, the finding outlined
                     healthy.png      the pseudo-healthy volume, in the greys of the image
                     difference.png   image minus pseudo-healthy, red brighter, blue darker
                     uncertainty.png  deviation between the seeds of an ensemble
                     prompt.json, prompt.txt   facts, question, and what must not be claimed
                     packet.json      the files with their SHA-256, written last

What a method does not make has no picture. Further channels are image-2.png and so on.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from volumediff.colours import DIFFERENCE, UNCERTAIN
from volumediff.findings.components import parts_of, voxel_of, voxels_of
from volumediff.findings.schema import CaseFindings, Finding
from volumediff.findings.written import Written
from volumediff.reporting.packet_panels import Layer, draw, overlay
from volumediff.reporting.prompt import prompt_of, prompt_text
from volumediff.reporting.scene import WHITE, limits
from volumediff.storage.atomic import atomic
from volumediff.storage.digests import sha256

__all__ = ["FOLDER", "write_packets"]

FOLDER = "findings"
FORMAT, VERSION = "volumediff-packet", 1
MANIFEST = "packet.json"


def write_packets(folder: Path, written: Written, case: CaseFindings, *, most: int) -> list[Path]:
    """Writes the packets of a case; those of an earlier run are removed.

    Arguments:
        folder: of the results
        written: the case's volumes
        case: its findings
        most: packets, of the most urgent findings

    Returns:
        the packets' folders
    """
    place = folder / FOLDER / written.case
    for old in sorted(place.glob(f"*/{MANIFEST}")):
        shutil.rmtree(old.parent)
    parts = parts_of(written)
    made = []
    for finding in case.findings[:most]:
        at = voxel_of(written, finding)
        outline = np.zeros(written.map.shape, bool)
        outline[tuple(voxels_of(finding, at, parts).T)] = True
        made.append(_write(place / finding.id, written, case, finding, at, outline))
    return made


def _write(
    folder: Path,
    written: Written,
    case: CaseFindings,
    finding: Finding,
    at: tuple[int, int, int],
    outline: Bool[np.ndarray, "d h w"],
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pictures, contents = [], {}
    for name, layer, outlined in _layers(written):
        contents[f"{name}.png"] = draw(
            layer, at, spacing_mm=written.grid.spacing_mm, outline=outline if outlined else None
        )
        pictures.append((f"{name}.png", layer.title))
    prompt = prompt_of(finding, case, pictures)
    contents["prompt.json"] = (json.dumps(prompt, indent=1) + "\n").encode()
    contents["prompt.txt"] = prompt_text(prompt).encode()
    for name, content in contents.items():
        with atomic(folder / name) as file:
            file.write(content)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "case": written.case,
        "finding": finding.id,
        "inputs_sha256": case.inputs_sha256,
        "weights_sha256": case.weights_sha256,
        "files": [
            {"file": name, "bytes": len(content), "sha256": sha256(content)}
            for name, content in contents.items()
        ],
    }
    with atomic(folder / MANIFEST) as file:
        file.write((json.dumps(manifest, indent=1) + "\n").encode())
    return folder


def _layers(written: Written) -> Iterator[tuple[str, Layer, bool]]:
    """File, picture and whether the finding is outlined; the image comes without."""
    first = next(iter(written.images.values()))
    for number, (channel, x) in enumerate(written.images.items(), start=1):
        name = "image" if number == 1 else f"image-{number}"
        yield name, Layer(f"image, {channel}", x, "gray", limits(x)), False
    shown = "anomaly map" if written.labels is None else "probability of the label"
    title = f"{shown} over the image (dark low, yellow high), the finding outlined in cyan"
    yield "overlay", overlay(first, written.map, title=title), True
    for number, (channel, healthy) in enumerate(written.healthy.items(), start=1):
        mark = "" if number == 1 else f"-{number}"
        x = written.images[channel]
        title = f"pseudo-healthy volume, {channel}, in the greys of the image"
        yield f"healthy{mark}", Layer(title, healthy, "gray", limits(x)), False
        difference = x - healthy
        inside = np.abs(difference[written.foreground])
        reach = float(np.percentile(inside, WHITE)) if inside.size else 1.0
        reach = reach if reach > 0 else 1.0
        title = f"image minus pseudo-healthy, {channel}: red brighter, blue darker than expected"
        title += f", full colour at {reach:.3g}"
        yield f"difference{mark}", Layer(title, difference, DIFFERENCE, (-reach, reach)), True
    if written.uncertainty is not None:
        span = limits(written.uncertainty, floor=0.0)
        title = f"deviation of the map between runs, full colour at {span[1]:.3g}"
        yield "uncertainty", Layer(title, written.uncertainty, UNCERTAIN, span), True
