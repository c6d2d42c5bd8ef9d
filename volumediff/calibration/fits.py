"""What methods learn of a run's volumes, stored in the run.

RUN/calibration/fits/<method>-<what the fit depends on>.safetensors: the class of the method, the
arguments that shape its fit, its supervision and the model's weights. After more training, or with
another argument, it is fitted anew.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

from volumediff.anomaly.calibration import Example
from volumediff.anomaly.fitted._base import Fit, Fitted
from volumediff.calibration.lesions import lesioned
from volumediff.data.anomalies import TRAINING
from volumediff.errors import UsageError
from volumediff.randomness import key
from volumediff.runs.trained import Trained
from volumediff.storage.digests import sha256

__all__ = ["with_fit"]

SEED = 0  # of what a fit draws: it is part of the method, not of a localization


def with_fit(
    trained: Trained, method: Fitted, *, report: Callable[[str], None] = lambda line: None
) -> Fitted:
    """The method with what it learnt of the run; learnt now if that is not stored.

    Raises:
        UsageError: the run's data are not reachable, too few, or without the masks it needs
        DataError: the stored fit is damaged
    """
    owner = {
        "method": method.name,
        "recipe": repr(method.recipe),
        "supervision": method.supervision,
        "weights": trained.digest if method.of_model else "",
    }
    stem = sha256(json.dumps(owner, sort_keys=True))[:24]
    path = trained.run / "calibration" / "fits" / f"{method.name}-{stem}.safetensors"
    if path.is_file():
        return replace(method, fit=Fit.load(path, owner=owner))
    report(f"fitting {method.name} on the run's volumes")
    try:
        fit = method.learn(trained.model, _examples(trained, method), key=key(SEED, "fit"))
    except ValueError as error:
        raise UsageError(f"{trained.run}: {error}") from None
    fit.save(path, owner=owner)
    return replace(method, fit=fit)


def _examples(trained: Trained, method: Fitted) -> Iterator[Example]:
    """Volumes as the method's supervision says."""
    if method.supervision == "full":
        # To the model, what it was trained on looks more usual than new volumes will.
        for case in trained.cases("validation"):
            example = trained.example(case)
            if example.truth is not None:
                yield example
    elif method.supervision == "self":
        cases = trained.cases("train")
        keys = [key(SEED, "training lesion", i) for i in range(len(cases))]
        for pair in lesioned(trained, cases, family=TRAINING, keys=keys):
            yield pair.sick
    else:
        yield from trained.examples("train")
