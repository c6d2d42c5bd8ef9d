"""Sealed texts: JSON and YAML that end with the SHA-256 of every byte before.

The digest lies in the file itself, so that one rename replaces both: there is no moment in which
they do not belong together. A sealed file stays plain JSON or YAML for everybody else.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from volumediff.storage.digests import sha256

__all__ = ["Broken", "open_json", "open_text", "seal_json", "seal_text"]

JSON_END = re.compile(rb',(?:\n | )"sha256": "([0-9a-f]{64})"\n?\}\n?\Z')
TEXT_END = re.compile(rb"# sha256: ([0-9a-f]{64})\n\Z")


class Broken(Exception):
    """A text that is not what was sealed; says in a few words what is wrong."""


def seal_json(content: Mapping[str, Any], *, line: bool = False) -> bytes:
    """JSON with the digest as its last key.

    Arguments:
        content: with at least one key
        line: on one line, for files that have one object per line
    """
    body = json.dumps(content, indent=None if line else 1).encode().removesuffix(b"}").rstrip()
    end = b', "sha256": "%s"}' if line else b',\n "sha256": "%s"\n}\n'
    return body + end % sha256(body).encode()


def open_json(raw: bytes) -> bytes:
    """The JSON without its digest.

    Raises:
        Broken: no digest at its end, or that of another text
    """
    return _checked(raw, JSON_END) + b"}"


def seal_text(text: str) -> bytes:
    """YAML, or another text with comments after #, and the digest in its last line."""
    body = (text if text.endswith("\n") else text + "\n").encode()
    return body + f"# sha256: {sha256(body)}\n".encode()


def open_text(raw: bytes) -> str:
    """The text without its digest.

    Raises:
        Broken: no digest in its last line, or that of another text
    """
    return _checked(raw, TEXT_END).decode()


def _checked(raw: bytes, end: re.Pattern[bytes]) -> bytes:
    found = end.search(raw)
    if found is None:
        raise Broken("does not end with its SHA-256")
    body = raw[: found.start()]
    if sha256(body) != found[1].decode():
        raise Broken("does not match its SHA-256")
    return body
