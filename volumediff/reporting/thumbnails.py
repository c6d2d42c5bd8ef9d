"""Small pictures of cases for lists of many: the axial slice that the viewer opens at."""

import io

import numpy as np

from volumediff.colours import gradient, label_colour
from volumediff.reporting.scene import Scene, limits

__all__ = ["thumbnail"]

SIDE = 144  # pixels of the longest side, twice the size in the list
# Of the range of a map: what is below is not shown over the image, as in the viewer.
FLOOR, OPACITY = 0.3, 0.7
QUALITY = 80


def thumbnail(scene: Scene) -> bytes:
    """JPEG of a scene: image, first map or first labels, and the edges of the first outline.

    As in the viewer the patient's right is on the left.
    """
    from matplotlib.colors import to_rgb
    from PIL import Image

    level = scene.start[2]
    image = next(iter(scene.images.values()))
    shown = np.repeat(_unit(image[:, :, level], *limits(image))[..., None], 3, axis=2)
    if scene.labels:
        labels = next(iter(scene.labels.values()))[:, :, level]
        for value in np.unique(labels[labels > 0]):
            _blend(shown, labels == value, np.array(to_rgb(label_colour(int(value)))))
    elif scene.maps:
        first = next(iter(scene.maps.values()))
        span = limits(first.array, floor=max(0.0, float(first.array.min())))
        heat = _unit(first.array[:, :, level], *span)
        _blend(shown, heat > FLOOR, gradient(first.colours)(heat)[..., :3])
    for outline in scene.outlines.values():
        shown[_edge(outline.mask[:, :, level])] = to_rgb(outline.colour)
        break
    picture = Image.fromarray(np.rint(255 * shown[::-1, ::-1].swapaxes(0, 1)).astype(np.uint8))
    width, height = (n * s for n, s in zip(scene.shape[:2], scene.spacing_mm[:2], strict=True))
    scale = SIDE / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _unit(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((plane.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1)


def _blend(shown: np.ndarray, where: np.ndarray, colours: np.ndarray) -> None:
    """Lays colours, one for all or one for each pixel, over some pixels."""
    over = np.broadcast_to(colours, shown.shape)
    shown[where] = (1 - OPACITY) * shown[where] + OPACITY * over[where]


def _edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask, or of a label, that have a neighbour of another value."""
    padded = np.pad(mask, 1, mode="edge")
    inner = (slice(1, -1), slice(1, -1))
    others = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (mask > 0) & np.any([padded[inner] != other for other in others], axis=0)
