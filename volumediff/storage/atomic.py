"""Files that are whole or not there: temporary name in the same folder, fsync, rename."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from volumediff.errors import DataError
from volumediff.system.folders import sync_folder

__all__ = ["atomic", "free_space", "write_bytes", "write_text"]


@contextmanager
def atomic(path: Path | str) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing; it gets its name when the block ends without error.

    Raises:
        OSError: it cannot be written; `filename` is the path, which a full disk does not say
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)  # the new name is on disk only once the folder is


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file whole or not at all; its folder is created.

    Raises:
        DataError: no space or no permission; the old file stays
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            file.write(content)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); {free_space(path)}."
        ) from None


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def free_space(path: Path) -> str:
    """How much room there is where a file should go, in words."""
    place = next((p for p in path.parents if p.exists()), Path())
    return f"{shutil.disk_usage(place).free / 1e6:.0f} MB are free there"
