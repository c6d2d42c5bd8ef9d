"""Colours of pictures on black and of the viewer."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

__all__ = ["DIFFERENCE", "HEAT", "STOPS", "UNCERTAIN", "gradient", "label_colour"]

DIFFERENCE, HEAT, UNCERTAIN = "difference", "heat", "uncertain"
# From the first to the last colour. Differences: blue below, black at zero, red above, lightness
# growing to both sides; heat: monotone in lightness, visible on grey tissue; uncertainty: another
# hue than the maps, so that they are not confused.
STOPS = {
    HEAT: ("#5a0a00", "#c83200", "#ff8c00", "#ffe14d", "#fff6c8"),
    DIFFERENCE: ("#a8dcff", "#2f7fe0", "#000000", "#dd4030", "#ffc9b0"),
    UNCERTAIN: ("#000000", "#0b6e8a", "#5fd0b8", "#f4ffe0"),
}
# Labels: far apart in hue and lightness, readable for most colour-blind eyes (Okabe and Ito 2008
# first).
LABELS = (
    *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"),
    *("#ff6f61", "#9fe8c8", "#b39ddb", "#c0ca33", "#8d6e63"),
)


def label_colour(value: int) -> str:
    """The colour of a label value; after the last the first comes again."""
    return LABELS[(value - 1) % len(LABELS)]


def gradient(name: str) -> "Colormap":
    """The colour map of a name."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    if name in STOPS:
        return LinearSegmentedColormap.from_list(name, STOPS[name])
    return colormaps[name]
