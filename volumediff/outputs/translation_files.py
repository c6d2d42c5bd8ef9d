"""Names of the files of one translated case, as they are written, read and brought home.

<case>_desc-translated_<channel>.nii.gz   the translated channel
<case>_desc-deviation_<channel>.nii.gz    standard deviation of the draws
<case>_desc-translated.json               method, weights, inputs, channels, network calls
"""

from pathlib import Path

__all__ = ["deviation_of", "translated_of", "translation_sidecar", "translations_in"]

TRANSLATED, DEVIATION = "desc-translated", "desc-deviation"


def translated_of(channel: str) -> str:
    """What the file of a translated channel is called, after the case."""
    return f"{TRANSLATED}_{channel}"


def deviation_of(channel: str) -> str:
    """What the file of its deviation is called, after the case."""
    return f"{DEVIATION}_{channel}"


def translation_sidecar(folder: Path, case: str) -> Path:
    """The JSON beside the translated channels of a case."""
    return folder / f"{case}_{TRANSLATED}.json"


def translations_in(folder: Path) -> dict[str, dict[str, Path]]:
    """Case -> channel -> translated channel, of a folder."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob(f"*_{TRANSLATED}_*.nii.gz")):
        case, _, channel = path.name.removesuffix(".nii.gz").rpartition(f"_{TRANSLATED}_")
        found.setdefault(case, {})[channel] = path
    return found
