"""Folders that appear whole or not at all, and are checked before they are believed.

A folder is written under a temporary name on the same file system, every file is flushed to the
disk and read back against its SHA-256, then the folder is renamed: whatever kills the process or
fills the disk leaves either the whole folder or nothing under its final name. Neither safetensors
nor NumPy notices damaged numbers, so `manifest.json` holds length and SHA-256 of every file.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from volumediff.errors import DataError
from volumediff.storage.atomic import atomic

__all__ = ["Damaged", "clear_leftovers", "discard", "publish", "sha256", "verify", "write_text"]

MANIFEST = "manifest.json"
TEMPORARY = ".partial-"
# One read of a hash: large enough for full speed, small beside any volume.
CHUNK = 1 << 22


class Damaged(Exception):
    """A folder that is not what was written: says which file and what is wrong with it."""


class _Hashing:
    """A file that remembers length and digest of what passes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.bytes += memoryview(data).nbytes
        return self.file.write(data)


def publish(target: Path, files: Mapping[str, Callable[[Any], Any]]) -> bool:
    """Writes a folder whole or not at all.

    Arguments:
        target: final name; its parent is created
        files: file name -> function that writes the content into a binary file

    Returns:
        whether this call put the folder there; False if another process was first

    Raises:
        DataError: no space, no permission or a write that did not read back; nothing is left
    """
    temporary = target.parent / f"{TEMPORARY}{target.name}-{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
        entries = {name: _write(temporary / name, content) for name, content in files.items()}
        text = json.dumps({"files": entries}, indent=1)
        _write(temporary / MANIFEST, lambda file: file.write(text.encode()))
        verify(temporary)
        _sync_folder(temporary)
        os.rename(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise DataError(
            f"{target}: cannot be written ({error.strerror}); {_free(target)}."
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
        manifest = json.loads((folder / MANIFEST).read_bytes())
        entries = {n: (e["bytes"], e["sha256"]) for n, e in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} is unreadable ({type(error).__name__})") from error
    present = {p.name for p in folder.iterdir()} - {MANIFEST}
    if present != set(entries):
        different = ", ".join(sorted(present ^ set(entries)))
        raise Damaged(f"files differ from the manifest: {different}")
    for name, (length, digest) in entries.items():
        actual = (folder / name).stat().st_size
        if actual != length:
            raise Damaged(f"{name} has {actual} bytes instead of {length}")
        if sha256(folder / name) != digest:
            raise Damaged(f"{name} does not match its SHA-256")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


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


def clear_leftovers(parent: Path) -> None:
    """Removes what a killed process left; only for a folder that this process alone writes."""
    for path in parent.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replaces a text file whole or not at all.

    Raises:
        DataError: no space or no permission; the old file stays
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); {_free(path)}.") from None


def _write(path: Path, content: Callable[[Any], Any]) -> dict[str, Any]:
    with open(path, "wb") as file:
        hashing = _Hashing(file)
        content(hashing)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": hashing.bytes, "sha256": hashing.digest.hexdigest()}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(path: Path) -> str:
    place = next((p for p in path.parents if p.exists()), Path())
    return f"{shutil.disk_usage(place).free / 1e6:.0f} MB are free there"
