"""Healthy volumes drawn from label maps and written as files: a data set where there is none.

Volumes that are drawn in training are never seen again. Written ones are read like any others, so
that they also validate and calibrate a run of a contrast in which no healthy volumes are at hand;
and a volume is drawn once, not at every step. All volumes of one label map are one patient: they
share an anatomy, and are never in two parts of a split.
"""

import csv
import io
from pathlib import Path

import torch

from volumediff import randomness
from volumediff.config import build
from volumediff.data.alignment_template import mni152
from volumediff.data.files import stem_of
from volumediff.data.label_maps import find_label_maps, prepare_label_map, structures_of
from volumediff.data.volume import write
from volumediff.errors import UsageError
from volumediff.samples.sources import plan_of
from volumediff.settings.run_config import RunConfig
from volumediff.storage.atomic import write_text
from volumediff.terminal.progress import Progress

__all__ = ["draw_files"]

TABLE = "cases.csv"
CHANNEL = "drawn"


def draw_files(config: RunConfig, output: Path, each: int, *, seed: int = 0) -> Path:
    """Draws volumes as `data.drawn` says, on the grid that `data.preprocessing` asks for.

    The files are aligned with MNI152, and 0 outside of the foreground. Beside them lies a table of
    the cases, which is written last.

    Arguments:
        config: whose `data.drawn`, spacing and shape are taken
        output: folder that is new or empty
        each: number of volumes per label map, at least 1
        seed: of everything that is drawn

    Returns:
        the table of the cases

    Raises:
        UsageError: the configuration draws nothing or has no grid, or the folder has files
        DataError: a label map is refused
    """
    section, grid = config.data.drawn, config.data.preprocessing
    if section is None:
        raise UsageError("data.drawn: expected label maps and a contrast, got none.")
    if grid.shape is None or grid.spacing_mm is None:
        raise UsageError("data.drawn: needs data.preprocessing.shape and spacing_mm.")
    if output.is_dir() and any(output.iterdir()):
        raise UsageError(
            f"{output}: expected a new or an empty folder, it has files; name another."
        )
    output.mkdir(parents=True, exist_ok=True)
    recipe, template = plan_of(config.data), mni152()
    contrast = build("contrast", section.contrast, where="data.drawn.contrast")
    maps = find_label_maps(section.label_maps)
    rows = [("id", f"image:{CHANNEL}", "patient")]
    with Progress(len(maps) * each, "volumes are drawn") as progress:
        for path in maps:
            name = stem_of(path)
            arrays, spacing, place = prepare_label_map(path, template, recipe)
            structures = structures_of(arrays["numbers"], path)
            indices = torch.from_numpy(arrays["structures"])
            for i in range(each):
                signal, _ = section.drawing(
                    indices,
                    structures,
                    contrast=contrast,
                    spacing_mm=spacing,
                    key=randomness.key(seed, "draw", name, i),
                )
                case = f"{name}-{i:03}"
                file = f"{case}_{CHANNEL}.nii.gz"
                write(output / file, signal.numpy(), like=place, kind="image")
                rows.append((case, file, name))
                progress.update(len(rows) - 1)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(output / TABLE, text.getvalue())
    return output / TABLE
