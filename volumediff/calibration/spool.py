"""Maps of many volumes on the disk, so that memory does not grow with their number."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

from safetensors.torch import load_file, save_file
from torch import Tensor

from volumediff.anomaly.normalization import Residual

__all__ = ["Spool"]

FIELDS = ("map", "x", "foreground", "errors")


class Spool(Sequence[Residual]):
    """Residuals in a temporary folder, one read at a time; gone at the end of the block.

    with Spool() as residuals:
        residuals.append(residual)
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="volumediff-maps-")
        self._outlines: list[tuple[Residual, dict[tuple[int, str], str]]] = []

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def append(self, residual: Residual) -> None:
        """Writes another one; tensors that its members share are written once."""
        names: dict[tuple[int, str], str] = {}
        kept: dict[int, tuple[str, Tensor]] = {}
        for number, one in enumerate((residual, *residual.members)):
            for field in FIELDS:
                tensor = getattr(one, field)
                if tensor is not None:
                    name, _ = kept.setdefault(id(tensor), (f"{number}.{field}", tensor))
                    names[number, field] = name
        tensors = {name: t.detach().cpu().contiguous() for name, t in kept.values()}
        save_file(tensors, self._path(len(self)))
        outline = replace(_emptied(residual), members=tuple(_emptied(m) for m in residual.members))
        self._outlines.append((outline, names))

    def __len__(self) -> int:
        return len(self._outlines)

    @overload
    def __getitem__(self, index: int) -> Residual: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Residual]: ...
    def __getitem__(self, index: int | slice) -> Residual | Sequence[Residual]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        outline, names = self._outlines[index]
        tensors = load_file(self._path(index), device=str(outline.map.device))

        def filled(number: int, one: Residual) -> Residual:
            own = {f: tensors[names[number, f]] for f in FIELDS if (number, f) in names}
            return replace(one, **own)

        members = (filled(n, m) for n, m in enumerate(outline.members, start=1))
        return replace(filled(0, outline), members=tuple(members))

    def __iter__(self) -> Iterator[Residual]:
        return (self[i] for i in range(len(self)))

    def _path(self, index: int) -> Path:
        return Path(self._folder.name) / f"{index}.safetensors"


def _emptied(residual: Residual) -> Residual:
    """The residual with tensors that hold no voxel, but know their device."""
    some = {f: getattr(residual, f) for f in FIELDS}
    empty = {f: None if t is None else t[..., :0].clone() for f, t in some.items()}
    return replace(residual, members=(), **empty)
