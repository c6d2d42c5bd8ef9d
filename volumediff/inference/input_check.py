"""Cases of a data set, looked at as inputs of a run before anything is computed with them."""

from collections.abc import Iterator

from volumediff.data.cases import Case
from volumediff.data.check import CheckLine
from volumediff.data.volume import Volume, read
from volumediff.errors import DataError
from volumediff.runs.inputs import prepared_case
from volumediff.runs.preparation import lies_in, look_of
from volumediff.runs.trained import Trained

__all__ = ["unlike_run"]

CODE = "unlike_run"


def unlike_run(trained: Trained, case: Case) -> Iterator[CheckLine]:
    """One line per difference between a case and what the run was trained on; errors are those
    that inference refuses.

    A raw scan for a run in the space of a template is aligned by `localize` itself: only what its
    files say is compared.
    """
    file = next(iter(case.images.values())).name
    try:
        raw = _raw_images(trained, case)
        if raw is not None:
            text = "does not lie in the template's space of the run: localize aligns it first"
            yield CheckLine(case.id, file, "info", CODE, text)
            differences = trained.guard.files(raw)
        else:
            differences = prepared_case(trained, case)[1]
    except DataError as error:
        yield CheckLine(case.id, file, "error", CODE, str(error))
        return
    for difference in differences:
        severity = "error" if difference.absurd else "warning"
        yield CheckLine(case.id, file, severity, CODE, difference.text)


def _raw_images(trained: Trained, case: Case) -> list[Volume] | None:
    """The images of a raw scan for a run in the space of a template; None for others."""
    preparation, policy = trained.guard.preparation, trained.preprocessing.policy
    look = None if preparation is None else look_of(preparation)
    if look is None:
        return None
    first, *others = case.images.values()
    image = read(first, policy=policy)
    if lies_in(image, look):
        return None
    return [image, *(read(path, policy=policy) for path in others)]
