"""A repository of the hub as it is listed: commit, licence, and files with sizes and digests."""

from collections.abc import Mapping
from dataclasses import dataclass

from volumediff.hub.connection import reaching
from volumediff.hub.place import HubPlace

__all__ = ["Repository", "RepositoryFile", "look_up"]


@dataclass(frozen=True)
class RepositoryFile:
    """A file of a repository.

    Arguments:
        bytes: its size
        sha256: of its content; None for small files, of which the hub names none
    """

    bytes: int
    sha256: str | None


@dataclass(frozen=True)
class Repository:
    """A repository at one commit.

    Arguments:
        place: that was asked for
        commit: hash of the commit
        licence: that its model card names; None where it names none
        library: that its model card names; None where it names none
        files: path -> file
    """

    place: HubPlace
    commit: str
    licence: str | None
    library: str | None
    files: Mapping[str, RepositoryFile]


def look_up(place: HubPlace) -> Repository:
    """The repository of a place; nothing is downloaded.

    Raises:
        UsageError: no such repository or revision, no access, or no network
        DataError: the hub does not answer as it should
    """
    from huggingface_hub import HfApi

    with reaching(place):
        info = HfApi().model_info(place.repository, revision=place.revision, files_metadata=True)
    files = {
        s.rfilename: RepositoryFile(s.size or 0, None if s.lfs is None else s.lfs.sha256)
        for s in info.siblings or ()
    }
    library = _said(info.card_data, "library_name")
    return Repository(place, str(info.sha), _licence(info.card_data), library, files)


def _licence(card: object) -> str | None:
    """An identifier, or the name of a licence that has none."""
    found = _said(card, "license")
    return _said(card, "license_name") or found if found in (None, "other") else found


def _said(card: object, key: str) -> str | None:
    value = getattr(card, key, None)
    return value if isinstance(value, str) and value else None
