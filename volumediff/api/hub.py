"""Runs on the Hugging Face Hub: pushed as a model file with its card, pulled and verified."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volumediff.api.arguments import Place, Report, silent
from volumediff.errors import DataError, UsageError

if TYPE_CHECKING:
    from volumediff.api.run import Run
    from volumediff.runs.model_file import ModelCard

__all__ = ["pull", "push"]


def push(
    run: Place,
    place: str,
    *,
    card: Mapping[str, Any] | None = None,
    method: Place | None = None,
    overrides: Sequence[str] = (),
    data: Place | None = None,
    public: bool = False,
    report: Report = silent,
) -> str:
    """Uploads a run to the Hugging Face Hub as one model file, with its model card.

    The login is that of huggingface_hub (`hf auth login`). A repository that is new is private
    unless `public`; one that is there keeps its visibility.

    Arguments:
        run: folder of a run, which is exported first, or a model file
        place: `hf:OWNER/NAME`
        card: what `export` asks for; a model file has its own
        method, overrides: that the model is meant for, as for `export`
        data: folder of the run's data, if they were moved
        public: whether a new repository can be seen by everyone
        report: receives progress lines

    Returns:
        hash of the commit

    Raises:
        UsageError: no card, a licence that leaves out that of imported weights, no login, no right
            to write there, or no network
        DataError: the run or the file is damaged
    """
    from volumediff.api.model_files import export
    from volumediff.config.shipped_models import MODEL_SUFFIX
    from volumediff.hub.place import HubPlace
    from volumediff.hub.upload import upload
    from volumediff.runs.hub_card import hub_card
    from volumediff.runs.model_file import card_of_file
    from volumediff.storage.digests import sha256_of_file

    target, source = HubPlace.parse(place), Path(run)
    if target.file is not None or target.revision is not None:
        raise UsageError(f"{place}: expected a repository to upload to, hf:OWNER/NAME.")
    name = target.repository.rpartition("/")[2]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = folder / f"{name}{MODEL_SUFFIX}"
        if source.is_file():
            if card is not None:
                raise UsageError(f"{source}: is a model file, which has its card; leave card out.")
            known = card_of_file(source)
            _check_licence(known, public=public)
            shutil.copyfile(source, file)
        else:
            if card is None:
                raise UsageError(
                    f"{run}: a run that is pushed needs a card; give about, data, licence, limits "
                    "and metrics of the model."
                )
            known = export(
                run,
                file,
                card=card,
                method=method,
                overrides=overrides,
                data=data,
                report=report,
            )
            _check_licence(known, public=public)
        digest = sha256_of_file(file)
        (folder / "README.md").write_text(hub_card(known, target, sha256=digest), "utf-8")
        report(f"{target}: uploading {file.stat().st_size / 1e6:.1f} MB")
        return upload(folder, target, public=public, message=f"volumediff model {known.name}")


def pull(place: str, output: Place, *, report: Report = silent) -> "Run":
    """Downloads a run that was pushed to the Hugging Face Hub, and verifies it.

    Arguments:
        place: `hf:OWNER/NAME`, or `hf:OWNER/NAME@REVISION` for another than the newest
        output: folder of the run, which must not be there yet
        report: receives progress lines

    Raises:
        UsageError: no such repository or revision, no access, no network, or a folder in use
        DataError: the repository holds no model file of this package, or a damaged one
    """
    from volumediff.api.loading import load
    from volumediff.config.shipped_models import MODEL_SUFFIX
    from volumediff.hub.place import HubPlace
    from volumediff.hub.repository import look_up
    from volumediff.hub.snapshot import fetch
    from volumediff.runs.hub_card import LIBRARY
    from volumediff.runs.model_file import unpack
    from volumediff.storage.digests import sha256_of_file
    from volumediff.training.run_folder import record_session

    source, target = HubPlace.parse(place), Path(output)
    if target.exists():
        raise UsageError(f"{target}: is there already; choose another folder.")
    repository = look_up(source)
    wanted = [n for n in repository.files if n.endswith(MODEL_SUFFIX) and source.file in (None, n)]
    if repository.library != LIBRARY or len(wanted) != 1:
        raise DataError(
            f"{source}: expected one model file {MODEL_SUFFIX} of this package, with library_name "
            f"{LIBRARY} in its model card, got {len(wanted)} and library_name "
            f"{repository.library}; import weights of another tool with volumediff import."
        )
    file = fetch(repository, wanted, report=report).folder / wanted[0]
    unpack(file, target)
    facts = {"source": str(source), "commit": repository.commit, "sha256": sha256_of_file(file)}
    record_session(target, {"pulled": facts})
    return load(target)


def _check_licence(card: "ModelCard", *, public: bool) -> None:
    """Weights of others keep their licence, and are not published without one."""
    for found in card.imported:
        if found.licence is None and public:
            raise UsageError(
                f"{card.name}: no licence was found for the weights of {found.address}, and "
                "without one they may not be published; ask their authors, or push them privately."
            )
        if found.licence is not None and found.licence.lower() not in card.licence.lower():
            raise UsageError(
                f"{card.name}: its card says the licence {card.licence!r}, and the imported "
                f"weights have {found.licence}; name {found.licence} in the card."
            )
