r"""Tensors as safetensors, written piece by piece, so that no second copy of them is in memory.

    n (8 bytes) │ header: JSON of n bytes, name -> type, shape, place │ numbers of all tensors

The bytes are those of the safetensors library, which reads them. `save` adds a record and, among
the header's metadata, the SHA-256 of the whole file (computed with zeros in its own place): one
file, one rename, nothing that could belong to something else.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from volumediff.errors import DataError
from volumediff.storage.atomic import atomic, free_space
from volumediff.storage.digests import Hashing, sha256_of_stream
from volumediff.storage.records import Record, parse

__all__ = ["load", "load_plain", "save", "stream"]

R = TypeVar("R", bound=Record)

# In the order of the library, which puts the tensors of the last type first.
TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
ORDER = {dtype: number for number, dtype in enumerate(TYPES)}
BLANK = "0" * 64
DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')


def stream(
    file: Any, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors one after the other; each is brought to the CPU when it is its turn.

    Arguments:
        file: has `write`
        tensors: by name; of shared memory each has its own copy in the file
        metadata: for the header
    """
    file.write(_header(tensors, metadata))
    for name in _order(tensors):
        flat = tensors[name].detach().to("cpu").contiguous().reshape(-1)
        if flat.numel() <= 1:  # counts as contiguous whatever its stride, which may be 0
            flat = flat.as_strided((flat.numel(),), (1,))
        file.write(memoryview(flat.view(torch.uint8).numpy()))


def save(path: Path, tensors: Mapping[str, Tensor], record: Record) -> None:
    """Writes tensors and a record into one file, whole and with its SHA-256.

    Raises:
        DataError: no space or no permission; the old file stays
    """
    metadata = {"record": record.model_dump_json(), "sha256": BLANK}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            hashing = Hashing(file)
            stream(hashing, tensors, metadata)
            file.seek(_place(_header(tensors, metadata)).start(1))
            file.write(hashing.sha256.encode())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); {free_space(path)}."
        ) from None


def load(path: Path, model: type[R], *, advice: str) -> tuple[dict[str, Tensor], R]:
    """Reads what `save` wrote.

    Arguments:
        model: of the record
        advice: what to do about a damaged file

    Raises:
        DataError: not there, damaged, or with a record that does not fit
    """
    try:
        with open(path, "rb") as file:
            head = _head(file)
            found = _place(head)
            blank = head[: found.start(1)] + BLANK.encode() + head[found.end(1) :]
            if sha256_of_stream(file, blank) != found[1].decode():
                raise ValueError("does not match its SHA-256")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {advice}.") from None
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}; {advice}.") from None
    tensors, metadata = load_plain(path, advice=advice)
    record = parse(metadata.get("record", ""), model, where=path, advice=advice)
    return tensors, record


def load_plain(
    path: Path,
    *,
    advice: str,
    keep: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file whose bytes were verified before.

    Arguments:
        keep: (name, tensor) -> what is kept of it; one tensor is read after the other

    Raises:
        DataError: no safetensors
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            tensors = {name: keep(name, file.get_tensor(name)) for name in file.keys()}
            return tensors, file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: no readable safetensors ({reason}); {advice}.") from None


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(tensors, key=lambda name: (-ORDER[tensors[name].dtype], name))


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    """Length and header of a file."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name in _order(tensors):
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        entry = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = {**entry, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _head(file: BinaryIO) -> bytes:
    """Length and header of an open file.

    Raises:
        ValueError: it ends before
    """
    length = file.read(8)
    size = int.from_bytes(length, "little")
    place = file.tell()
    rest = file.seek(0, 2) - place
    file.seek(place)
    if len(length) < 8 or size > rest:
        raise ValueError("its header is cut")
    return length + file.read(size)


def _place(head: bytes) -> re.Match[bytes]:
    found = DIGEST.search(head)
    if found is None:
        raise ValueError("has no SHA-256")
    return found
