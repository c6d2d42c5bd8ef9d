"""Channels that a case lacks, drawn by a translation run before another run sees the case.

A measured channel is never replaced, and what was drawn is said in the records and warnings of
every result.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from volumediff.data.cases import Case
from volumediff.data.patients import Patients
from volumediff.data.single_case import case_of_file
from volumediff.data.survey import AUTO, Spec
from volumediff.errors import DataError, UsageError
from volumediff.inference.options import TranslateOptions
from volumediff.inference.translate import Translating, translating
from volumediff.runs.inputs import Examination, find_inputs
from volumediff.runs.model_file import resolve
from volumediff.runs.trained import Trained, load_trained

__all__ = ["Filling", "filled_warnings", "filling"]


@dataclass(frozen=True, eq=False)
class Filling:
    """A translation run that fills in channels of another run.

    Arguments:
        work: the translation
        names: channels of the run that is served, in its order
    """

    work: Translating
    names: tuple[str, ...]

    @property
    def drawn(self) -> tuple[str, ...]:
        """Channels of the run that can be drawn."""
        return tuple(name for name in self.names if name in self.work.names)

    @property
    def sources(self) -> tuple[str, ...]:
        """Channels that the translation takes."""
        return tuple(self.work.trained.image_names(None, of=self.work.given) or ())

    @property
    def needed(self) -> tuple[str, ...]:
        """Channels that a case must have: those that are not drawn, and the sources."""
        rest = [name for name in self.names if name not in self.drawn]
        return tuple(dict.fromkeys([*rest, *self.sources]))

    @property
    def settings(self) -> dict[str, Any]:
        """What results depend on."""
        return self.work.settings

    def find(
        self,
        sources: Path | str | Sequence[Path | str],
        *,
        layout: Spec = AUTO,
        patients: Patients | None = None,
    ) -> tuple[list[Case], dict[str, str]]:
        """As `find_inputs`; the cases that have all channels, and those that have the needed."""
        whole: list[Case] = []
        if not _another_channel(sources, self.names):
            try:
                whole, _ = find_inputs(
                    sources, channels=self.names, layout=layout, patients=patients
                )
            except (UsageError, DataError):
                whole = []  # the other attempt says what is wrong
        try:
            partial, bad = find_inputs(
                sources, channels=self.needed, layout=layout, patients=patients
            )
        except (UsageError, DataError):
            if not whole:
                raise
            partial, bad = [], {}
        known = {case.id for case in whole}
        cases = whole + [case for case in partial if case.id not in known]
        cases.sort(key=lambda case: case.id)
        return cases, {name: reason for name, reason in bad.items() if name not in known}

    def __call__(self, examination: Examination) -> Examination:
        """The examination with all channels of the run; one that has them is returned as it is.

        Raises:
            DataError: a source is missing, or refused
        """
        images = examination.images
        lacking = [name for name in self.names if name not in images]
        if not lacking:
            return examination
        missing = [name for name in self.needed if name not in images]
        if missing:
            raise DataError(
                f"{examination.id}: expected the channel {missing[0]}, to fill in "
                f"{', '.join(lacking)}; the case has {', '.join(images)}."
            )
        sources = {name: images[name] for name in self.sources}
        translated = self.work(replace(examination, images=sources))
        made = translated.volumes()
        trained = self.work.trained
        facts = {
            "from": list(self.sources),
            "run": str(trained.run.resolve()),
            "weights_sha256": trained.digest,
            "method": self.work.method,
            "translator": repr(self.work.translator),
        }
        # The run's channels first; sources that the run does not take are inputs all the same.
        files = dict.fromkeys(self.names, "") | dict(examination.files)
        digests = dict(examination.digests)
        for name in lacking:
            files[name] = f"translated {name}"
            digests[name] = hashlib.sha256(made[name].array.tobytes()).hexdigest()
        return replace(
            examination,
            images={name: images.get(name) or made[name] for name in self.names},
            files=files,
            digests=digests,
            filled=dict.fromkeys(lacking, facts),
        )


def filling(trained: Trained, run: Path | str) -> Filling:
    """A translation run that draws channels for a run.

    Arguments:
        trained: the run that is served
        run: folder or model file of the translation run

    Raises:
        UsageError: it does not translate, or draws no channel that the run takes
    """
    own = load_trained(resolve(run), device=str(trained.device))
    work = translating(own, TranslateOptions())
    names = trained.config.data.channels
    if names is None:
        raise UsageError(
            f"fill: expected a run with names of its channels, and {trained.name} has none; train "
            "it with data.channels=[T1w,FLAIR], or of whatever it takes."
        )
    found = Filling(work, tuple(names))
    if not found.drawn:
        raise UsageError(
            f"fill {run}: draws {', '.join(work.names)}, and {trained.name} takes "
            f"{', '.join(names)}; use a translation run that draws one of these."
        )
    return found


def filled_warnings(filled: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What every reader of a result must know of drawn channels, one sentence each."""
    return [
        f"{name} was not measured: it was drawn from {', '.join(facts['from'])} by the run "
        f"{facts['run']}, and shows nothing that these do not."
        for name, facts in filled.items()
    ]


def _another_channel(sources: Path | str | Sequence[Path | str], names: Sequence[str]) -> bool:
    """Whether single files are given whose names say that they are another channel."""
    paths = [Path(p) for p in ([sources] if isinstance(sources, str | Path) else sources)]
    if len(names) != 1 or not all(path.is_file() for path in paths):
        return False
    words = {next(iter(case_of_file(path).images)) for path in paths}
    return names[0] not in words
