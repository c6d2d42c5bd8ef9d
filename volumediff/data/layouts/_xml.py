"""XML of other people, read within bounds: no document type, so no entities, and no depth."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from volumediff.data.stream import open_regular
from volumediff.errors import DataError

__all__ = ["read_xml"]

# The largest annotation of LIDC-IDRI has 3 MB, and is six levels deep.
MOST_BYTES, MOST_DEPTH = 64 * 2**20, 32
CHUNK = 1 << 16


class _Bounded(ElementTree.TreeBuilder):
    """Refuses what annotations have no need of."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0

    def doctype(self, *_: Any) -> None:
        raise ValueError("it has a document type, which may define entities")

    def start(self, tag: str, attrs: dict[str, str]) -> ElementTree.Element:  # type: ignore[override]
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise ValueError(f"elements lie more than {MOST_DEPTH} deep")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ElementTree.Element:
        self.depth -= 1
        return super().end(tag)


def read_xml(path: Path) -> ElementTree.Element:
    """The root of a file.

    Raises:
        DataError: no XML, or beyond the bounds
    """
    parser, read = ElementTree.XMLParser(target=_Bounded()), 0
    try:
        with open_regular(path) as file:
            while piece := file.read(CHUNK):
                read += len(piece)
                if read > MOST_BYTES:
                    raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
                parser.feed(piece)
        return parser.close()
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as XML ({error}); copy it again.") from error
