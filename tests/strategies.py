"""Hypothesis strategies for what comes from outside: headers, tags, JSON, tables, YAML, words.

A strategy starts from something valid and changes a little of it: bytes at random are refused by
the first check, and find nothing.
"""

import copy
import json
import math

import numpy as np
from hypothesis import strategies as st

__all__ = [
    "cells",
    "dicom_edits",
    "header_edits",
    "json_values",
    "mutated",
    "table",
    "words",
    "yaml_texts",
]

# Text with what breaks readers: controls, escapes, directions, surrogates of no partner, digits.
ODD = ["\x00", "\x1b[2J", "\u202e", "\ud800", "\n", "\t", "..", "/", "\\", "~", "é", "9" * 400, ""]
text = st.one_of(st.text(max_size=8), st.sampled_from(ODD))
numbers = st.one_of(
    st.integers(-3, 300),
    st.sampled_from(
        [2**31, -(2**63), 2**64, 10**400, math.inf, -math.inf, math.nan, 1e308, 5e-324]
    ),
    st.floats(width=32),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, text)
json_values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
DEEP = json.loads("[" * 300 + "]" * 300)


@st.composite
def mutated(draw, content):
    """JSON with one to three changes: a value replaced, a key taken out, added or doubled."""
    found = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(found))
        if not places:
            return draw(json_values)
        node, name = draw(st.sampled_from(places))
        change = draw(st.sampled_from(["replace", "replace", "remove", "add", "deep"]))
        if change == "replace":
            node[name] = draw(json_values)
        elif change == "remove":
            del node[name]
        elif change == "deep":
            node[name] = copy.deepcopy(DEEP)
        elif isinstance(node, dict):
            node[draw(text)] = draw(json_values)
        else:
            node.append(draw(json_values))
    return found


def _places(content):
    inner = content.items() if isinstance(content, dict) else enumerate(content)
    for name, value in list(inner):
        yield content, name
        if isinstance(value, dict | list) and value != DEEP:
            yield from _places(value)


FIELDS = {
    "sizeof_hdr": np.int32,
    "dim": np.int16,
    "datatype": np.int16,
    "bitpix": np.int16,
    "pixdim": np.float32,
    "vox_offset": np.float32,
    "scl_slope": np.float32,
    "scl_inter": np.float32,
    "xyzt_units": np.uint8,
    "qform_code": np.int16,
    "sform_code": np.int16,
    "quatern_b": np.float32,
    "quatern_c": np.float32,
    "qoffset_x": np.float32,
    "srow_x": np.float32,
    "srow_y": np.float32,
    "srow_z": np.float32,
    "intent_code": np.int16,
    "magic": np.uint8,
}


def header_edits():
    """Field of a NIfTI-1 header, element of it, value: up to three of them."""

    def values(name):
        kind = FIELDS[name]
        if kind == np.float32:
            odd = [0.0, -1.0, math.nan, math.inf, 4.6e-41, 1e30, 352.5, 351.0, 3.4e38]
            return st.one_of(st.sampled_from(odd), st.floats(width=32))
        limits = np.iinfo(kind)
        return st.one_of(st.integers(-2, 70), st.integers(int(limits.min), int(limits.max)))

    one = st.sampled_from(sorted(FIELDS)).flatmap(
        lambda name: st.tuples(st.just(name), st.integers(0, 7), values(name))
    )
    return st.lists(one, min_size=1, max_size=3)


TAGS = {
    "ImagePositionPatient": "DS",
    "ImageOrientationPatient": "DS",
    "PixelSpacing": "DS",
    "SliceThickness": "DS",
    "RescaleSlope": "DS",
    "RescaleIntercept": "DS",
    "InstanceNumber": "IS",
    "NumberOfFrames": "IS",
    "Rows": "US",
    "Columns": "US",
    "BitsAllocated": "US",
    "BitsStored": "US",
    "HighBit": "US",
    "PixelRepresentation": "US",
    "SamplesPerPixel": "US",
    "PhotometricInterpretation": "CS",
    "SeriesInstanceUID": "UI",
    "Modality": "CS",
    "ImageType": "CS",
}


def dicom_edits():
    """Slice, tag and its raw value; None takes the tag out."""
    texts = {
        "DS": ["", "0", "-1", "nan", "inf", "1e400", "x", "1\\2", "1\\2\\3", "0\\0\\0\\0\\0\\0"],
        "IS": ["", "0", "-1", "99999999999", "x", "1.5"],
        "CS": ["", "X", "MONOCHROME1", "RGB", "PALETTE COLOR", "DERIVED\\MOSAIC"],
        "UI": ["", "1.2", "x"],
    }

    def values(name):
        if TAGS[name] == "US":
            return st.sampled_from([0, 1, 2, 7, 8, 15, 16, 32, 64, 65535])
        return st.sampled_from(texts[TAGS[name]])

    one = st.sampled_from(sorted(TAGS)).flatmap(
        lambda name: st.tuples(st.integers(0, 2), st.just(name), st.none() | values(name))
    )
    return st.lists(one, min_size=1, max_size=2)


cells = st.one_of(
    text,
    st.sampled_from(["sub-01", "sub-02", "n/a", "NA", "1e999", "0x1", "12", "ses-1", "1\x0012"]),
)


@st.composite
def table(draw, names):
    """A table with these columns, or some of them, and cells of any kind."""
    columns = draw(st.lists(st.sampled_from([*names, "age", "group", ""]), max_size=4))
    rows = draw(st.lists(st.lists(cells, max_size=5), max_size=4))
    return "\n".join("\t".join(row) for row in [columns, *rows])


# Pieces of YAML that do something, beside values.
PIECES = [
    *("a: ", "b: ", "- ", "[", "]", "{", "}", ", ", "\n", "  ", "? ", ": ", "# ", "'", '"', "|\n"),
    *(
        "&a ",
        "*a",
        "<<: ",
        "!!int ",
        "!t ",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "\t",
        "\x00",
        "\ufeff",
    ),
    *(
        "1",
        "0x_",
        "1:30",
        "1e5",
        ".inf",
        ".nan",
        "2024-01-05",
        "2024-13-45",
        "yes",
        "~",
        "=",
        "<<",
    ),
    *("seed: ", "optim: ", "lr: ", "data: ", "space: ", "network: ", "task: ", "9" * 80, "\\x41"),
]
yaml_texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=14).map(
    "".join
)
KEYS = ["seed", "optim.lr", "optim", "space", "network.widths", "data.only", "kernel", "task"]
words = st.one_of(
    st.tuples(st.sampled_from(KEYS), yaml_texts).map("=".join),
    st.tuples(st.lists(text, max_size=4).map(".".join), yaml_texts).map("=".join),
    yaml_texts,
)
