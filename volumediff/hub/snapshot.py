"""A repository of the hub as a folder on this machine, at one commit.

huggingface_hub keeps what it fetches in its own cache, where an interrupted download goes on and a
file appears whole or not at all. Where the hub names the SHA-256 of a file, it is compared.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from volumediff.errors import DataError, UsageError
from volumediff.hub.connection import reaching
from volumediff.hub.repository import Repository
from volumediff.storage.digests import sha256_of_file

__all__ = ["Snapshot", "fetch"]

# Beside any file that is asked for: what its makers say about it.
DESCRIPTIONS = ("*.json", "*.yaml", "*.yml", "README.md", "LICENSE*", "LICENCE*")


@dataclass(frozen=True)
class Snapshot:
    """Files of a repository.

    Arguments:
        repository: that they are of
        folder: where they lie
        files: their paths in the repository
    """

    repository: Repository
    folder: Path
    files: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The file that was asked for, or else the folder."""
        return self.folder / (self.repository.place.file or "")


def fetch(
    repository: Repository,
    patterns: Sequence[str],
    *,
    report: Callable[[str], None] = lambda line: None,
) -> Snapshot:
    """Downloads what is wanted of a repository, and what describes it; says the size first.

    Arguments:
        repository: as it was listed
        patterns: of the names of wanted files, such as *.safetensors; where the place names a
            file, that one alone is wanted
        report: receives a line before the download

    Raises:
        UsageError: no such file, no access, or no network
        DataError: nothing of these patterns is there, a file is not what the hub says, or the
            disk is full
    """
    from huggingface_hub import HfApi, constants

    place = repository.place
    wanted = _wanted(repository, patterns)
    size = sum(repository.files[name].bytes for name in wanted)
    report(
        f"{place}: {len(wanted)} files, {size / 1e6:.1f} MB, commit {repository.commit[:12]}, "
        f"licence {repository.licence or 'not named'}"
    )
    cache = Path(constants.HF_HUB_CACHE)
    _check_room(cache, size)
    try:
        with reaching(place):
            found = HfApi().snapshot_download(
                place.repository,
                revision=repository.commit,
                allow_patterns=list(wanted),
                cache_dir=cache,
            )
    except OSError as error:
        raise DataError(f"{cache}: cannot be written ({error.strerror or error}).") from None
    folder = Path(str(found))
    for name in wanted:
        _check_digest(folder / name, repository.files[name].sha256)
    return Snapshot(repository, folder, wanted)


def _wanted(repository: Repository, patterns: Sequence[str]) -> tuple[str, ...]:
    place, names = repository.place, list(repository.files)
    there = ", ".join(sorted(names)[:6]) or "nothing"
    if place.file is not None:
        if place.file not in names:
            raise UsageError(f"{place}: has no file {place.file}; it has {there}.")
        patterns = [place.file]
    elif not any(fnmatch(name, pattern) for name in names for pattern in patterns):
        raise DataError(f"{place}: has no file {' or '.join(patterns)}; it has {there}.")
    every = (*patterns, *DESCRIPTIONS)
    return tuple(name for name in names if any(fnmatch(name, pattern) for pattern in every))


def _check_room(cache: Path, size: int) -> None:
    place = next((p for p in (cache, *cache.parents) if p.exists()), Path())
    free = shutil.disk_usage(place).free
    if size > free:
        raise DataError(
            f"{cache}: {free / 1e6:.0f} MB are free, {size / 1e6:.0f} are needed; free some, or "
            "set HF_HOME to another folder."
        )


def _check_digest(path: Path, named: str | None) -> None:
    if named is not None and sha256_of_file(path) != named:
        raise DataError(
            f"{path.resolve()}: does not match the SHA-256 that the hub names; remove the file "
            "and fetch it again."
        )
