"""What importers of MONAI's autoencoders share: origin and axes come from the bundle."""

from volumediff.importers import _monai_bundle
from volumediff.importers._axes import mirrors
from volumediff.importers._base import ForeignCheckpoint, Importer, Origin

__all__ = ["BundledAutoencoder"]


class BundledAutoencoder(Importer):
    """An autoencoder that was trained with arrays along some axes.

    Arguments:
        axes: directions of the arrays it was trained with, such as LAS; by default those that the
            bundle turns volumes to, or RAS
    """

    def __init__(self, axes: str | None = None) -> None:
        if axes is not None:
            mirrors(axes)
        self.axes = axes

    def origin(self, source: ForeignCheckpoint) -> Origin:
        return _monai_bundle.origin(source)

    def axes_of(self, source: ForeignCheckpoint) -> str:
        """The axes that are given, or else those of the bundle."""
        return self.axes or _monai_bundle.axes(source)
