"""Tables beside the volumes: rows by column name, and which columns there must be."""

import codecs
import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

from volumediff.errors import DataError

__all__ = ["columns", "is_missing", "number", "rows"]

# What spreadsheets and programs write where a value is not known.
MISSING = frozenset(
    ["", *"- -- . ? n/a #n/a na #na <na> nan -nan null none #value! #ref! #div/0!".split()]
)
DELIMITERS = ("\t", ",", ";")
# 63,5 and 0,125 are decimal; 1,000 may be a thousand, and stays text.
DECIMAL_COMMA = re.compile(r"[+-]?(?![1-9]\d{0,2},\d{3}$)\d+,\d+")


def columns(path: Path) -> list[str]:
    """The names in the first line; none where there is no table."""
    try:
        text = _text(path)
        return [name.strip() for name in next(csv.reader(io.StringIO(text, newline="")), [])]
    except (DataError, csv.Error):
        return []


def rows(path: Path, needed: Sequence[str], *, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a table, cells without surrounding blanks.

    Arguments:
        path: of the table
        needed: columns that must be there
        delimiter: between cells; a table without the first column that is needed is read with
            commas, semicolons or tabs, if one of them gives it

    Raises:
        DataError: no table, or a column is missing; one line that names it
    """
    text = _text(path)
    first = text.partition("\n")[0]
    for other in (delimiter, *DELIMITERS):
        if not needed or needed[0] in [n.strip().strip('"') for n in first.split(other)]:
            delimiter = other
            break
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        cells = list(reader)
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as a table ({error}).") from error
    for name in needed:
        if name not in names:
            have = ", ".join(names[:8]) or "nothing"
            raise DataError(f"{path}: expected a column '{name}', it has {have}; add it.")
    for line, row in enumerate(cells, start=2):
        for name in needed:
            if row.get(name) is None:
                raise DataError(f"{path}: row {line} ends before the column '{name}'; repair it.")
        if any(cell.strip() for cell in row.get(None) or ()):
            raise DataError(
                f"{path}: row {line} has more cells than the table has columns ({len(names)}); "
                "quote cells that hold the delimiter."
            )
    return [{k: v.strip() for k, v in row.items() if k and isinstance(v, str)} for row in cells]


def number(text: str) -> str | float:
    """The finite number that a cell holds, with a point or a comma, or the text."""
    if DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def is_missing(cell: str) -> bool:
    """Whether a cell says that a value is not known."""
    return cell.strip().lower() in MISSING


def _text(path: Path) -> str:
    """The text of a table, as spreadsheets write it, too.

    Raises:
        DataError: it is not there, or neither UTF-8 nor UTF-16
    """
    try:
        content = path.read_bytes()
        wide = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        return content.decode("utf-16" if wide else "utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected a table, it is not there.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected a table in UTF-8, byte {error.start} is none ({error.reason}); "
            "save it as UTF-8."
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a table ({error}).") from error
