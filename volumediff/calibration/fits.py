"""Statistics that methods fit on a run's volumes, stored in the run.

RUN/calibration/fits/<method>-<what the fit depends on>.safetensors: the class of the method, the
arguments that shape its fit, its supervision and the model's weights. After more training, or with
another argument, it is fitted anew.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

from volumediff.anomaly.fitted._base import FIT, Fit, Fitted
from volumediff.anomaly.method_input import Example
from volumediff.calibration.lesions import lesioned
from volumediff.component import Request, identity_of
from volumediff.data.anomalies import TRAINING
from volumediff.errors import UsageError
from volumediff.randomness import key
from volumediff.runs.trained import Trained
from volumediff.storage.digests import sha256
from volumediff.storage.locks import exclusive

__all__ = ["Fits"]

SEED = 0  # of what a fit draws: it is part of the method, not of a localization


@dataclass(frozen=True, eq=False)
class Fits:
    """What the components of a method learn of a run: what is stored, or fitted now.

    Arguments:
        trained: the run
        report: receives progress lines
    """

    trained: Trained
    report: Callable[[str], None] = lambda line: None

    def __call__(self, request: Request) -> Fit | None:
        """What a request gets; None where nothing is fitted.

        Raises:
            UsageError: the run's data are not reachable, too few, or without the masks it needs
            DataError: the stored fit is damaged
        """
        if request.loan.kind != FIT.kind:
            return None
        lender = request.lender
        trained, method = self.trained if lender is None else lender.trained, request.component
        owner = {
            "method": method.name,
            "recipe": json.dumps(identity_of(method.recipe), sort_keys=True),
            "supervision": method.supervision,
            "weights": trained.digest if method.of_model else "",
        }
        stem = sha256(json.dumps(owner, sort_keys=True))[:24]
        path = trained.run / "calibration" / "fits" / f"{method.name}-{stem}.safetensors"
        with nullcontext() if path.is_file() else exclusive(path):
            if path.is_file():
                return Fit.load(path, owner=owner)
            self.report(f"fitting {method.name} on the run's volumes")
            try:
                fit = method.learn(trained.model, _examples(trained, method), key=key(SEED, "fit"))
            except ValueError as error:
                raise UsageError(f"{trained.name}: {error}") from None
            fit.save(path, owner=owner)
        return fit


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
