"""Prepared volumes on the disk, found by what they were made from.

An entry is a folder of .npy files whose name holds the SHA-256 of its fingerprint: content of the
source files and every setting that shaped the arrays. Entries are published atomically, so that
any number of processes may fill one cache, verified when opened, and memory-mapped.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from volumediff.errors import DataError
from volumediff.storage.digests import sha256
from volumediff.storage.folder import Content, Damaged, discard, publish, verify
from volumediff.storage.records import Record, parse_file

__all__ = ["Cache", "CacheEntry"]

# To be raised when the meaning of stored arrays changes.
VERSION = 1


class Info(Record):
    """What is kept beside the arrays.

    Arguments:
        spacing_mm: voxel size along d, h, w
        cropped: share of the foreground that lies outside of the arrays, in [0, 1]
        file_spacing_mm: voxel size of the files; None for arrays without files
    """

    spacing_mm: Annotated[list[float], Field(min_length=3, max_length=3)]
    cropped: Annotated[float, Field(ge=0, le=1)] = 0.0
    file_spacing_mm: Annotated[list[float], Field(min_length=3, max_length=3)] | None = None


class StoredEntry(Record):
    """entry.json: what the arrays were made from, and what was stored beside them."""

    fingerprint: str
    info: Info


@dataclass(frozen=True)
class CacheEntry:
    """Arrays of one case in the cache; cheap to send to loader workers.

    Arguments:
        folder: where the .npy files are
        info: what was stored as JSON beside them
    """

    folder: Path
    info: Mapping[str, Any]

    def load(self, name: str) -> np.ndarray | None:
        """A read-only memory map, or None if the case has no such array."""
        path = self.folder / f"{name}.npy"
        return np.load(path, mmap_mode="r") if path.is_file() else None


@dataclass(frozen=True)
class Cache:
    """A folder of entries.

    Arguments:
        folder: shared by any number of runs and processes
        report: receives one line for every damaged entry, which is made again
    """

    folder: Path
    report: Callable[[str], None]

    def entry(
        self,
        name: str,
        fingerprint: Mapping[str, Any],
        make: Callable[[], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]],
    ) -> CacheEntry:
        """The entry of a fingerprint, made if there is none or if it is damaged.

        Arguments:
            name: a readable part of the folder's name
            fingerprint: everything that the arrays depend on, as JSON
            make: computes the arrays and a JSON object kept beside them

        Raises:
            DataError: the cache cannot be written
        """
        folder, text = self._place(name, fingerprint)
        if folder.is_dir():
            try:
                return self._open(folder, text)
            except (Damaged, DataError) as error:
                self.report(f"{folder}: damaged, made again: {error}.")
                discard(folder)
        arrays, info = make()
        publish(folder, _files(arrays, info, text))
        try:
            return self._open(folder, text)
        except (Damaged, DataError) as error:
            raise DataError(f"{folder}: damaged right after it was written ({error}).") from None

    def has(self, name: str, fingerprint: Mapping[str, Any]) -> bool:
        """Whether there is an entry of a fingerprint, damaged or not."""
        return self._place(name, fingerprint)[0].is_dir()

    def _place(self, name: str, fingerprint: Mapping[str, Any]) -> tuple[Path, str]:
        """The folder of an entry, and its fingerprint as text."""
        text = json.dumps({"version": VERSION, **fingerprint}, sort_keys=True)
        safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:80]
        return self.folder / f"{safe}-{sha256(text)[:24]}", text

    def _open(self, folder: Path, fingerprint: str) -> CacheEntry:
        verify(folder)
        stored = parse_file(folder / "entry.json", StoredEntry, advice="remove the folder")
        if stored.fingerprint != fingerprint:
            raise Damaged("entry.json belongs to other data")
        return CacheEntry(folder, stored.info.model_dump(exclude_none=True))


def _files(
    arrays: Mapping[str, np.ndarray], info: Mapping[str, Any], fingerprint: str
) -> dict[str, Content]:
    body = json.dumps({"fingerprint": fingerprint, "info": dict(info)}, indent=1).encode()
    files: dict[str, Content] = {"entry.json": body}
    for name, array in arrays.items():
        files[f"{name}.npy"] = _array_writer(np.ascontiguousarray(array))
    return files


def _array_writer(array: np.ndarray) -> Callable[[Any], Any]:
    def write(file: Any) -> None:
        np.lib.format.write_array(file, array, None, False)  # numbers only, no objects

    return write
