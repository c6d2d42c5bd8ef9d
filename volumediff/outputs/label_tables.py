"""Names and colours of labels, for the programs that show label maps.

OUT/<kind>.label   label descriptions of ITK-SNAP
OUT/<kind>.ctbl    colour table of 3D Slicer
OUT/dseg.tsv       look-up table of BIDS, for every label map below the folder

The colours are those of the pages. A file that is there already stays: it may have been edited.
"""

from collections.abc import Mapping
from pathlib import Path

from volumediff.colours import label_colour
from volumediff.outputs.segmentation_files import DSEG
from volumediff.storage.atomic import write_text

__all__ = ["write_label_tables"]

ITK_SNAP_HEAD = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# Where:
#    IDX:   value of the label
#    -R-:   red, 0 to 255
#    -G-:   green, 0 to 255
#    -B-:   blue, 0 to 255
#    -A-:   opacity, 0 to 1
#    VIS:   1 to show the label
#    MSH:   1 to show its surface
#  LABEL:   name
################################################
    0     0    0    0        0  0  0    "Clear Label"
"""


def write_label_tables(out: Path, kind: str, names: Mapping[int, str]) -> None:
    """Writes the tables of one kind of label map; that of BIDS for `dseg` alone, as it wants.

    Arguments:
        out: output folder
        kind: what the names of the label maps end with, such as `dseg`
        names: label value -> its name

    Raises:
        DataError: the folder cannot be written
    """
    colours = {value: label_colour(value) for value in names}
    levels = {value: bytes.fromhex(colour[1:]) for value, colour in colours.items()}
    bids = "index\tname\tcolor\n0\tbackground\t#000000\n" + "".join(
        f"{value}\t{name}\t{colours[value]}\n" for value, name in names.items()
    )
    itk_snap = ITK_SNAP_HEAD + "".join(
        f'{value:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{names[value]}"\n'
        for value, (red, green, blue) in levels.items()
    )
    slicer = f"# Color table file\n# {len(names) + 1} values\n0 background 0 0 0 0\n" + "".join(
        f"{value} {'_'.join(names[value].split())} {red} {green} {blue} 255\n"
        for value, (red, green, blue) in levels.items()
    )
    tables = {".label": itk_snap, ".ctbl": slicer} | ({".tsv": bids} if kind == DSEG else {})
    for ending, text in tables.items():
        path = out / f"{kind}{ending}"
        if not path.is_file():
            write_text(path, text)
