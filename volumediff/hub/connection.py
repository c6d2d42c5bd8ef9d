"""What can go wrong between this machine and the hub, each as one line with a remedy.

Names of users and tokens are those of huggingface_hub's own login; no message shows them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from volumediff.errors import DataError, UsageError
from volumediff.hub.place import HubPlace

__all__ = ["reaching"]


@contextmanager
def reaching(place: HubPlace) -> Iterator[None]:
    """Inside, errors of huggingface_hub become one line.

    Raises:
        UsageError: no such repository or revision, no access, or no network
        DataError: the hub does not answer as it should, or the cache cannot be written
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise UsageError(
            f"{place}: access has to be granted first; ask for it on the model's page, then log "
            "in here: hf auth login."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UsageError(
            f"{place}: no such repository, or a private one; check the name, or log in with "
            "access to it: hf auth login."
        ) from None
    except errors.RevisionNotFoundError:
        raise UsageError(
            f"{place}: has no revision {place.revision}; leave @{place.revision} out for the "
            "newest one."
        ) from None
    except errors.HFValidationError as error:
        raise UsageError(f"{place}: is no name of the hub ({error}).") from None
    except errors.HfHubHTTPError as error:
        raise _refused(place, error.response.status_code) from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.HTTPError):
        raise UsageError(
            f"{place}: the hub cannot be reached from here; where there is a network, run "
            f"hf download {place.repository} and give the folder that it prints in place of "
            f"{place}."
        ) from None


def _refused(place: HubPlace, status: int) -> UsageError | DataError:
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return UsageError(
            f"{place}: this login may not do that; log in with a token that may write to "
            f"{place.repository.partition('/')[0]}: hf auth login."
        )
    return DataError(f"{place}: the hub answered with status {status}; try again later.")
