"""Files that are whole or not there: temporary name in the same folder, fsync, rename."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic"]


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
    if os.name == "posix":  # the new name is on disk only once the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
