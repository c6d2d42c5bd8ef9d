"""The figures of the four pipelines, drawn as SVG.

    python -m volumediff.documentation.figures

writes `pipelines.svg` and one larger figure for each pipeline to `docs/images`. A figure brings
its own light background, so that it reads the same on a light page and on a dark one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

__all__ = ["FIGURES", "IMAGES", "overview", "pipeline"]

IMAGES = Path(__file__).parents[1] / "docs" / "images"
INK, MUTED, PAPER, EDGE = "#1f2933", "#52606d", "#fbfbf8", "#d3d7dc"
# (top, front, side) of a block
VOLUME = ("#c9dcf2", "#8fb4de", "#6a95c8")
STATE = ("#fbdfb5", "#f2bb6a", "#dd9b3d")
CROP = ("#f5b7ac", "#e0705c", "#bf4f3c")
NETWORK = "#6a9a78"
Length = int | float  # in pixels
SLANT = 0.4  # of the depth of a block, to the right and upwards


def _text(x: Length, y: Length, words: str, *, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="12.5" fill="{MUTED}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def _heading(x: Length, y: Length, words: str, *, anchor: str = "start", size: int = 17) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="600" fill="{INK}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def _polygon(points: Sequence[tuple[Length, Length]], fill: str) -> str:
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    outline = f'stroke="{INK}" stroke-width="0.8" stroke-linejoin="round"'
    return f'<polygon points="{path}" fill="{fill}" {outline}/>'


def _block(
    x: Length, y: Length, size: tuple[Length, Length, Length], colours: tuple[str, str, str]
) -> str:
    """A block of width, height and depth whose front has its lower left corner at (x, y)."""
    w, h, d = size[0], size[1], size[2] * SLANT
    front = [(x, y), (x + w, y), (x + w, y - h), (x, y - h)]
    top = [(x, y - h), (x + w, y - h), (x + w + d, y - h - d), (x + d, y - h - d)]
    side = [(x + w, y), (x + w, y - h), (x + w + d, y - h - d), (x + w + d, y - d)]
    return _polygon(front, colours[1]) + _polygon(top, colours[0]) + _polygon(side, colours[2])


def _centred(
    cx: Length, cy: Length, size: tuple[Length, Length, Length], colours: tuple[str, str, str]
) -> str:
    """A block with its centre at (cx, cy)."""
    w, h, d = size[0], size[1], size[2] * SLANT
    return _block(cx - (w + d) / 2, cy + (h + d) / 2, size, colours)


def _volume(cx: Length, cy: Length, edge: Length) -> str:
    return _centred(cx, cy, (edge, edge, edge), VOLUME)


def _voxels(cx: Length, cy: Length, edge: Length, whole: bool) -> str:
    part, colours = (edge, STATE) if whole else (edge * 0.45, CROP)
    return _centred(cx, cy, (part, part, part), colours)


def _bands(cx: Length, cy: Length, edge: Length, whole: bool) -> str:
    half, step = edge / 2, edge * 0.59
    left, low = cx - edge * 0.75, cy + edge * 0.68
    back = step * SLANT + edge * 0.054
    return "".join(
        _block(left + i * step + k * back, low - j * step - k * back, (half, half, half), STATE)
        for k in (1, 0)
        for j in (0, 1)
        for i in (0, 1)
    )


def _latents(cx: Length, cy: Length, edge: Length, whole: bool) -> str:
    part = edge * 0.4
    return _centred(cx, cy, (part, part, part), STATE)


def _slices(cx: Length, cy: Length, edge: Length, whole: bool) -> str:
    wide, step = edge * 0.92, edge * 0.12
    left, low = cx - edge * 0.66, cy + edge * 0.62
    return "".join(
        _block(left + k * step, low - k * step, (wide, wide, 6), STATE) for k in reversed(range(6))
    )


@dataclass(frozen=True)
class Pipeline:
    """What the figures say about a pipeline.

    Arguments:
        draw: the state at (x, y) for volumes of an edge, as training or inference sees it
        state: what is diffused
        encode: how a volume becomes a state
        decode: how a state becomes a volume
        network: the network, in two lines
        training: what a training step sees
        inference: what a sampling step sees
    """

    draw: Callable[[Length, Length, Length, bool], str]
    state: str
    encode: str
    decode: str
    network: tuple[str, str]
    training: str
    inference: str


PIPELINES = {
    "patch": Pipeline(
        _voxels,
        "voxels",
        "crop",
        "",
        ("3D U-Net", "given absolute coordinates"),
        "Random crops, each with the coordinates of its voxels.",
        "The whole volume in one pass, without the seams of tiles.",
    ),
    "wavelet": Pipeline(
        _bands,
        "8 bands of coefficients",
        "3D wavelet transform",
        "inverse transform",
        ("3D U-Net", "at half resolution"),
        "Whole volumes: half as many voxels along each axis, eight bands as channels.",
        "Whole volumes; the transform has no weights and loses nothing.",
    ),
    "latent": Pipeline(
        _latents,
        "latents",
        "encoder",
        "decoder",
        ("3D U-Net", "attention at low resolution"),
        "Whole volumes, encoded by an autoencoder that is trained first.",
        "Whole volumes; what the autoencoder loses does not come back.",
    ),
    "pseudo3d": Pipeline(
        _slices,
        "stacks of slices",
        "stack",
        "",
        ("2D layers, each followed by", "a 1D layer through the slices"),
        "Stacks of slices; a run that has learned single slices can be the start.",
        "The whole volume as one stack, however many slices it has.",
    ),
}


def _network(name: str, cx: Length, cy: Length, height: Length) -> str:
    """A U of bars; in pseudo-3D each bar of 2D layers has a thin 1D layer behind it."""
    heights = (1.0, 0.66, 0.36, 0.66, 1.0)
    step, width = height * 0.3, height * 0.15
    left = cx - step * (len(heights) - 1) / 2
    drawn = []
    for level in (0, 1):  # skips, as far as the bars of their level are high
        y = cy + height / 2 - height * heights[level] * 0.88
        a, b = left + level * step, left + (len(heights) - 1 - level) * step
        drawn.append(
            f'<line x1="{a:g}" y1="{y:g}" x2="{b:g}" y2="{y:g}" stroke="{NETWORK}" '
            'stroke-width="1.4" stroke-dasharray="4 3"/>'
        )
    for i, share in enumerate(heights):
        x, y = left + i * step, cy + height / 2
        drawn.append(
            f'<rect x="{x - width / 2:g}" y="{y - height * share:g}" width="{width:g}" '
            f'height="{height * share:g}" rx="2" fill="{NETWORK}"/>'
        )
        if name == "pseudo3d":
            thin = width * 0.32
            drawn.append(
                f'<rect x="{x + width / 2 + 1.5:g}" y="{y - height * share:g}" width="{thin:g}" '
                f'height="{height * share:g}" rx="1" fill="{STATE[2]}"/>'
            )
    return "".join(drawn)


def _arrow(x: Length, y: Length, end: Length, words: str = "") -> str:
    head = f"{end:g},{y:g} {end - 9:g},{y - 4.5:g} {end - 9:g},{y + 4.5:g}"
    line = (
        f'<path d="M {x:g} {y:g} H {end - 7:g}" stroke="{MUTED}" stroke-width="1.6"/>'
        f'<polygon points="{head}" fill="{MUTED}"/>'
    )
    first, _, second = words.partition("\n")
    label = _text((x + end) / 2, y - 10, first) if first else ""
    below = _text((x + end) / 2, y + 20, second) if second else ""
    return line + label + below


def _page(width: int, height: int, title: str, drawn: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" '
            'font-family="Helvetica, Arial, sans-serif">',
            f"<title>{escape(title)}</title>",
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10" '
            f'fill="{PAPER}" stroke="{EDGE}"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def _row(name: str, y: Length) -> list[str]:
    """One pipeline from the volume to the volume."""
    words = PIPELINES[name]
    inside = [_centred(217, y + 6, (24, 24, 24), CROP)] if name == "patch" else []
    return [
        _heading(28, y + 5, name),
        _volume(215, y, 58),
        *inside,
        _arrow(270, y, 382, _broken(words.encode)),
        words.draw(440, y, 58, False),
        _text(440, y + 68, words.state),
        _arrow(500, y, 560),
        _network(name, 625, y, 74),
        _text(625, y + 56, words.network[0]),
        _text(625, y + 71, words.network[1]),
        _arrow(695, y, 800, _broken(words.decode)),
        _volume(865, y, 58),
    ]


def overview() -> str:
    """The four pipelines, one below the other."""
    drawn = [
        _heading(x, 32, words, anchor="middle", size=14)
        for x, words in (
            (215, "volume"),
            (440, "what is diffused"),
            (625, "network"),
            (865, "volume"),
        )
    ]
    for i, name in enumerate(PIPELINES):
        y = 110 + 150 * i
        if i:
            drawn.append(f'<line x1="20" y1="{y - 67}" x2="940" y2="{y - 67}" stroke="{EDGE}"/>')
        drawn += _row(name, y)
    return _page(960, 640, "The four pipelines: patch, wavelet, latent and pseudo-3D", drawn)


def pipeline(name: str) -> str:
    """One pipeline in training and in inference."""
    words = PIPELINES[name]
    drawn = []
    for y, title, told in (
        (130, "Training", words.training),
        (370, "Inference", words.inference),
    ):
        whole = title == "Inference"
        drawn += [
            _heading(28, y - 88, title),
            _text(138, y - 88, told, anchor="start"),
        ]
        steps = "noise,\none level drawn" if not whole else "pure noise or a\nnoised volume"
        drawn += [
            _volume(95, y, 72),
            _text(95, y + 76, "volume"),
            _arrow(160, y, 285, _broken(words.encode) if name != "patch" or not whole else ""),
            words.draw(355, y, 72, whole),
            _text(355, y + 84, words.state),
            _arrow(430, y, 535, steps),
            _network(name, 610, y, 92),
            _text(610, y + 68, words.network[0]),
            _text(610, y + 84, words.network[1]),
        ]
        if whole:
            drawn += [
                _arrow(690, y, 800, _broken(words.decode)),
                _volume(865, y, 72),
                _text(865, y + 76, "volume"),
                f'<path d="M 668 {y - 56} C 668 {y - 80}, 552 {y - 80}, 552 {y - 58}" fill="none" '
                f'stroke="{MUTED}" stroke-width="1.6"/>',
                f'<polygon points="552,{y - 50} 547.5,{y - 59} 556.5,{y - 59}" fill="{MUTED}"/>',
                _text(664, y - 74, "next step", anchor="start"),
            ]
        else:
            drawn += [
                _arrow(690, y, 770),
                _text(785, y - 4, "predicted state,", anchor="start"),
                _text(785, y + 13, "compared with the true one", anchor="start"),
            ]
    drawn.insert(0, f'<line x1="20" y1="244" x2="980" y2="244" stroke="{EDGE}"/>')
    return _page(1000, 485, f"The {name} pipeline in training and in inference", drawn)


def _broken(words: str) -> str:
    """A label of two words or more in two lines, above and below its arrow."""
    first, _, last = words.rpartition(" ")
    return f"{first}\n{last}" if first else words


FIGURES = {"pipelines.svg": overview} | {
    f"pipeline_{name}.svg": lambda name=name: pipeline(name) for name in PIPELINES
}


def main() -> None:
    """Draws every figure."""
    IMAGES.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        (IMAGES / name).write_text(draw(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
