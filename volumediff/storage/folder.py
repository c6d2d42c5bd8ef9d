"""Folders that appear whole or not at all, and are verified when they are read.

A folder is written under a temporary name on the same file system, every file is flushed to the
disk and read back against its checksum, then the folder is renamed: whatever kills the process or
fills the disk leaves either the whole folder or nothing under its final name. Neither safetensors
nor NumPy notices damaged numbers, so `manifest.json` holds length and SHA-256 of every file,
and its own.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from volumediff.errors import DataError
from volumediff.storage.atomic import free_space
from volumediff.storage.digests import Hashing, crc32_of_file, sha256_of_file
from volumediff.storage.records import Record, read
from volumediff.storage.seal import seal_json
from volumediff.system.folders import sync_folder

__all__ = [
    "MANIFEST",
    "TEMPORARY",
    "Content",
    "Damaged",
    "Manifest",
    "clear_leftovers",
    "discard",
    "made",
    "publish",
    "read_manifest",
    "verified",
    "verify",
]

MANIFEST = "manifest.json"
TEMPORARY = ".partial-"

Content = bytes | Callable[[Any], Any]
"""What a file holds, or a function that writes it into a binary file, piece by piece."""


class Damaged(Exception):
    """A folder that is not what was written: says which file and what is wrong with it."""


class Listed(Record):
    """Length and SHA-256 of a file."""

    bytes: int
    sha256: str


class Manifest(Record):
    """Every other file of a published folder, by name."""

    files: dict[str, Listed]


def publish(target: Path, files: Mapping[str, Content]) -> bool:
    """Writes a folder whole or not at all.

    Arguments:
        target: final name; its parent is created
        files: file name -> its content

    Returns:
        whether this call put the folder there; False if another process was first

    Raises:
        DataError: no space, no permission or a write that did not read back; nothing is left
    """
    temporary = target.parent / f"{TEMPORARY}{target.name}-{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
        entries = {name: _write(temporary / name, content) for name, content in files.items()}
        _write(temporary / MANIFEST, seal_json({"files": entries}))
        sync_folder(temporary)
        os.rename(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise DataError(
            f"{target}: cannot be written ({error.strerror}); {free_space(target)}."
        ) from None
    except Damaged as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DataError(f"{target}: did not read back as written ({error}).") from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return True


def verify(folder: Path) -> None:
    """Reads every file of a published folder against its manifest.

    Raises:
        Damaged: a file is missing, too many, of another length or with other content
    """
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        raise Damaged(str(error).removeprefix(f"{folder}{os.sep}").rstrip(".")) from None
    entries = {name: (entry.bytes, entry.sha256) for name, entry in manifest.files.items()}
    present = {p.name for p in folder.iterdir()} - {MANIFEST}
    if present != set(entries):
        different = ", ".join(sorted(present ^ set(entries)))
        raise Damaged(f"files differ from the manifest: {different}")
    for name, (length, digest) in entries.items():
        actual = (folder / name).stat().st_size
        if actual != length:
            raise Damaged(f"{name} has {actual} bytes instead of {length}")
        if sha256_of_file(folder / name) != digest:
            raise Damaged(f"{name} does not match its SHA-256")


def verified(folder: Path) -> Path:
    """The folder itself, if it is what was written.

    Raises:
        DataError: it is not; names folder and file
    """
    try:
        verify(folder)
    except (Damaged, OSError) as error:
        raise DataError(f"{folder}: damaged: {error}; restore it from a backup.") from None
    return folder


def read_manifest(folder: Path) -> Manifest:
    """Names, lengths and SHA-256 of the files, as they were written.

    Raises:
        DataError: it is damaged
    """
    return read(folder / MANIFEST, Manifest, advice="it says what the others should be")


def discard(folder: Path) -> None:
    """Removes a published folder so that a half-removed one is never seen under its name.

    Raises:
        DataError: no permission
    """
    hidden = folder.parent / f"{TEMPORARY}{folder.name}-{uuid.uuid4().hex}"
    try:
        os.rename(folder, hidden)
    except FileNotFoundError:  # another process removed it
        return
    except OSError as error:
        raise DataError(f"{folder}: cannot be removed ({error.strerror}).") from None
    shutil.rmtree(hidden, ignore_errors=True)


def made(folder: Path | str) -> Path:
    """The folder, created with its parents where it is not there.

    Raises:
        DataError: it cannot be written
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder."
        ) from None
    return folder


def clear_leftovers(parent: Path) -> None:
    """Removes what a killed process left; only for a folder that this process alone writes."""
    for path in parent.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def _write(path: Path, content: Content) -> dict[str, Any]:
    """Writes a file and reads it back; its entry in the manifest.

    Raises:
        Damaged: it does not read back
    """
    with open(path, "wb") as file:
        hashing = Hashing(file)
        if isinstance(content, bytes):
            hashing.write(content)
        else:
            content(hashing)
        file.flush()
        os.fsync(file.fileno())
    if path.stat().st_size != hashing.bytes or crc32_of_file(path) != hashing.crc32:
        raise Damaged(f"{path.name} does not match its checksum")
    return {"bytes": hashing.bytes, "sha256": hashing.sha256}
