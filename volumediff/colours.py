"""Colour maps of pictures on black."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

__all__ = ["DIFFERENCE", "UNCERTAIN", "gradient"]

DIFFERENCE, UNCERTAIN = "difference", "uncertain"
# From the first to the last colour. Differences: blue below, black at zero, red above, lightness
# growing to both sides; uncertainty: another hue than the maps, so that they are not confused.
STOPS = {
    DIFFERENCE: ("#a8dcff", "#2f7fe0", "#000000", "#dd4030", "#ffc9b0"),
    UNCERTAIN: ("#000000", "#0b6e8a", "#5fd0b8", "#f4ffe0"),
}


def gradient(name: str) -> "Colormap":
    """The colour map of a name."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    if name in STOPS:
        return LinearSegmentedColormap.from_list(name, STOPS[name])
    return colormaps[name]
