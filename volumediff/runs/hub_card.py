"""The model card that the hub shows, README.md, written from the card in a model file.

Its head is what the hub filters by. Licences that the hub has an identifier for are named by it,
others as `other` with their text.
"""

from collections.abc import Iterator, Mapping, Sequence

import yaml

from volumediff.hub.place import HubPlace
from volumediff.runs.model_file import ModelCard

__all__ = ["LIBRARY", "hub_card"]

LIBRARY = "volumediff"
# Identifiers of the hub that models and data of the field have; the case does not count.
LICENCES = frozenset(
    "apache-2.0 mit bsd-2-clause bsd-3-clause gpl-2.0 gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0 cc0-1.0 "
    "cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-sa-4.0 cc-by-nc-nd-4.0 openrail "
    "unlicense".split()
)
TAGS = {"localize": "anomaly-localization", "segment": "segmentation"}
READERS = {
    "localize": "Every result wants a reader: a map says where a volume differs from healthy "
    "ones, not what is there.",
    "segment": "Every result wants a reader: labels can be missing, and others can be too many.",
}
NOTICE = "Research software. Not a medical device, not for diagnosis."


def hub_card(card: ModelCard, place: HubPlace, *, sha256: str) -> str:
    """README.md of a model.

    Arguments:
        card: in the model file
        place: repository that it goes to
        sha256: of the model file
    """
    head = yaml.safe_dump(dict(_head(card)), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n".join(_body(card, place, sha256))


def _head(card: ModelCard) -> Iterator[tuple[str, object]]:
    known = card.licence.strip().lower()
    if known in LICENCES:
        yield "license", known
    else:
        yield "license", "other"
        yield "license_name", card.licence
    yield "library_name", LIBRARY
    yield "pipeline_tag", "image-segmentation"  # the hub's nearest: a label for every voxel
    yield "tags", ["medical", "3d", "diffusion", TAGS[card.verb]]


def _body(card: ModelCard, place: HubPlace, sha256: str) -> Iterator[str]:
    yield from (f"# {card.name}", "", card.about, "", f"**{NOTICE}**", "")
    yield from _section(
        "Intended use",
        [
            "Research on images like those that the model was trained on; see Data and Limits.",
            READERS[card.verb],
        ],
    )
    yield from _section("Use", [])
    yield from (
        "```sh",
        "pip install volumediff",
        f"volumediff pull {place} -o runs/{card.name}",
        f"volumediff {card.verb} CASE.nii.gz --run runs/{card.name} -o out/",
        "```",
        "",
        "```python",
        "import volumediff",
        "",
        f'run = volumediff.pull("{place}", "runs/{card.name}")',
        f'run.{card.verb}("CASE.nii.gz").save("out/")',
        "```",
        "",
    )
    words = "".join(f" {word}" for word in card.overrides)
    yield from _section(
        "Model",
        [
            f"method: `{card.method}{words}`",
            f"channels: {card.channels}",
            f"voxels: {_numbers(card.shape)}, at {_numbers(card.spacing_mm)} mm",
            f"step of the training: {card.step}",
            f"volumediff {card.volumediff}, SHA-256 of the file {sha256}",
        ],
    )
    if card.imported:
        yield from _section("Source of the weights", [found.line for found in card.imported])
    yield from _section("Data", card.data)
    yield from _section("Metrics", [f"{name}: {text}" for name, text in card.metrics.items()])
    yield from _section("Limits", card.limits)
    yield from _section("Licence", [card.licence])
    yield from _section(
        "Subjects that the model has seen",
        [
            "Hashes of their names and files, and none of the names, are in the file; "
            "`volumediff evaluate` refuses these subjects.",
            *_counted(card.seen),
        ],
    )


def _section(title: str, points: Sequence[str]) -> Iterator[str]:
    yield from (f"## {title}", "")
    if points:
        yield from (*(f"- {' '.join(point.split())}" for point in points), "")


def _counted(seen: Mapping[str, int]) -> list[str]:
    return [f"{part}: {count}" for part, count in seen.items()]


def _numbers(values: tuple[int | float, ...] | None) -> str:
    """Numbers along R, A and S, or that the volumes decide."""
    return (
        "those of the volume" if values is None else " x ".join(f"{value:g}" for value in values)
    )
