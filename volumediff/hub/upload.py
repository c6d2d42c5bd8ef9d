"""A folder uploaded to a repository of the hub, in one commit."""

from pathlib import Path

from volumediff.errors import UsageError
from volumediff.hub.connection import reaching
from volumediff.hub.place import HubPlace

__all__ = ["upload"]


def upload(folder: Path, place: HubPlace, *, public: bool, message: str) -> str:
    """Uploads the files of a folder; the repository is made where there is none.

    One that is there keeps its visibility, and its files of other names.

    Arguments:
        folder: what lies in it, and nothing else, is uploaded
        place: the repository
        public: whether a new repository can be seen by everyone
        message: of the commit

    Returns:
        hash of the commit

    Raises:
        UsageError: no login, no right to write there, or no network
        DataError: the hub does not answer as it should
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with reaching(place):
        api.create_repo(place.repository, private=not public, exist_ok=True)
        try:
            found = api.upload_folder(
                repo_id=place.repository, folder_path=folder, commit_message=message
            )
        except ValueError as error:  # of the head of the model card
            reason = " ".join(str(error).split())
            raise UsageError(f"{place}: the hub refuses the model card: {reason}") from None
    return str(found.oid)
