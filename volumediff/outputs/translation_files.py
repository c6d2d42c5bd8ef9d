"""Names of the files of one translated case, as they are written, read and brought home.

<case>_desc-translated_<channel>.nii.gz   the translated channel
<case>_desc-deviation_<channel>.nii.gz    standard deviation of the draws
<case>_desc-translated.json               method, weights, inputs, channels, network calls
"""

from pathlib import Path

from volumediff.outputs.case_files import case_of, written

__all__ = ["TRANSLATED", "deviation_of", "record_beside", "translated_of", "translations_in"]

TRANSLATED, DEVIATION = "desc-translated", "desc-deviation"


def translated_of(channel: str) -> str:
    """What the file of a translated channel is called, after the case."""
    return f"{TRANSLATED}_{channel}"


def deviation_of(channel: str) -> str:
    """What the file of its deviation is called, after the case."""
    return f"{DEVIATION}_{channel}"


def record_beside(channel: Path) -> Path:
    """The JSON beside a translated channel, which all channels of the case have in common."""
    return channel.with_name(f"{channel.name.rpartition(f'_{TRANSLATED}_')[0]}_{TRANSLATED}.json")


def translations_in(folder: Path) -> dict[str, dict[str, Path]]:
    """Case -> channel -> translated channel, of a folder."""
    found: dict[str, dict[str, Path]] = {}
    for path in written(folder, f"*_{TRANSLATED}_*.nii.gz"):
        stem, _, channel = path.name.removesuffix(".nii.gz").rpartition(f"_{TRANSLATED}_")
        found.setdefault(case_of(folder, path, stem), {})[channel] = path
    return found
