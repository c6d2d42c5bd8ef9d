"""Translation with a trained run: of one examination in memory, or file by file.

<case>_desc-translated_<channel>.nii.gz   the translated channel: the mean of the draws
<case>_desc-deviation_<channel>.nii.gz    standard deviation of the draws, where there are several
<case>_desc-translated.json               method, weights, inputs, channels, unit, network calls
seen-<hash>.json                          subjects that the weights were trained on

Files are on the grid of the first source. MR intensities have no unit, and of a channel that was
not measured nothing tells its scale: 0 is the background and 1 the upper limit that the run
normalises to. Channels of CT are in HU.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import volumediff
from volumediff.data.intensity import BACKGROUND
from volumediff.data.seen import Seen
from volumediff.data.volume import Volume
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.leakage import keep
from volumediff.inference.case_by_case import find_cases, work_through
from volumediff.inference.cost import Cost, counted
from volumediff.inference.options import TranslateOptions
from volumediff.outputs.batch import Result, Summary
from volumediff.outputs.case_files import examination_files
from volumediff.outputs.export import Writer
from volumediff.outputs.input_grid import InputGrid
from volumediff.outputs.translation_files import TRANSLATED, deviation_of, translated_of
from volumediff.planning.shortage import explained
from volumediff.randomness import key
from volumediff.runs.inputs import Examination, find_inputs, prepared
from volumediff.runs.provenance import provenance
from volumediff.runs.trained import Trained
from volumediff.samples.input_guard import accepted
from volumediff.samples.preparation_record import recorded_preparation
from volumediff.samples.seen_record import seen_by
from volumediff.translation.method_files import load_translator
from volumediff.translation.translators import TranslationPair, Translator

__all__ = ["DEFAULT", "Translated", "Translating", "translate", "translating"]

DEFAULT = "translation"  # the method of runs that were configured for none


@dataclass(frozen=True, eq=False)
class Translated:
    """What a method draws for one examination.

    Arguments:
        examination: what was given
        names: of the translated channels
        mean: of the draws, in the unit of the files, on the prepared grid
        deviation: standard deviation of the draws; None for one draw
        lows: of each channel, the value of the background
        grid: of the input
        facts: what is recorded beside the channels
        cost: network calls and memory
        seen: what the weights have seen
        stripped: whether the run's volumes show the brain alone
    """

    examination: Examination
    names: tuple[str, ...]
    mean: Float[Tensor, "t d h w"]
    deviation: Float[Tensor, "t d h w"] | None
    lows: tuple[float, ...]
    grid: InputGrid
    facts: Mapping[str, Any]
    cost: Cost
    seen: Seen
    stripped: bool

    @cached_property
    def channels(self) -> dict[str, Float[np.ndarray, "1 od oh ow"]]:
        """The translated channels on the grid of the first source, with axes along R, A, S."""
        return {
            name: self.grid.image(self.mean[i : i + 1], beyond=self.lows[i])
            for i, name in enumerate(self.names)
        }

    @cached_property
    def deviations(self) -> dict[str, Float[np.ndarray, "1 od oh ow"]]:
        """Standard deviations of the draws; empty for one draw."""
        if self.deviation is None:
            return {}
        return {
            name: self.grid.image(self.deviation[i : i + 1], beyond=0.0)
            for i, name in enumerate(self.names)
        }

    def volumes(self) -> dict[str, Volume]:
        """The translated channels as images of the case."""
        canonical = self.grid.record.canonical
        return {
            name: Volume.from_array(
                x[0], canonical.affine, kind="image", name=f"translated {name}"
            )
            for name, x in self.channels.items()
        }

    def write(self, folder: Path) -> list[Path]:
        """Writes channels, deviations and records; returns the files."""
        place = examination_files(folder, self.examination)
        writer = Writer(place, self.grid)
        record = keep(folder, self.seen)
        for name, x in self.channels.items():
            writer.native_image(translated_of(name), x)
        for name, x in self.deviations.items():
            writer.native_image(deviation_of(name), x)
        files = writer.record(
            TRANSLATED,
            {
                **self.facts,
                "seen": record.name,
                "preprocessing_findings": [vars(f) for f in self.grid.record.findings],
                "notice": "Synthetic images. Research software, not for diagnosis.",
            },
            keys={"SkullStripped": self.stripped},
        )
        return [*files, record]


@dataclass(frozen=True, eq=False)
class Translating:
    """A settled translation: everything that the results of a call have in common.

    Arguments:
        trained: the run
        method: its name
        translator: the method, fitted
        options: of the call
    """

    trained: Trained
    method: str
    translator: Translator
    options: TranslateOptions

    @property
    def given(self) -> tuple[int, ...]:
        """Numbers of the channels that a volume must have."""
        return self.trained.recipe.given(self.trained.channels)

    @property
    def drawn(self) -> tuple[int, ...]:
        """Numbers of the channels that are drawn."""
        return self.trained.recipe.diffused(self.trained.channels)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the channels that are drawn."""
        return tuple(self.trained.image_names(None, of=self.drawn) or ())

    @property
    def settings(self) -> dict[str, Any]:
        """What results depend on, beside the volume."""
        return {
            "task": "translate",
            "method": repr(self.translator),
            "weights": self.trained.digest,
            "preprocessing": repr(self.trained.preprocessing),
            "seed": self.options.seed,
            "version": volumediff.__version__,
        }

    def __call__(self, examination: Examination) -> Translated:
        """Translates one examination.

        Raises:
            DataError: other channels than the run's sources, an empty volume, or one that the
                run was plainly not trained for
        """
        trained, digests = self.trained, examination.digests
        sources = list(examination.images.values())
        force, guard = self.options.force, trained.guard.of_channels(self.given)
        taken = accepted(guard.files(sources), force=force)
        ready = prepared(trained, sources, of=self.given)
        taken += accepted(guard.volume(ready), force=force)
        d, h, w = ready.x.shape[1:]
        with (
            explained(trained.config, mode="infer", device=trained.device, shape=(d, h, w)),
            trained.config.memory.arithmetic(),
            counted(trained.model) as cost,
        ):
            foreground = ready.foreground[None].to(trained.device)
            draws = self.translator.draws(
                trained.diffusion,
                ready.x[None].to(trained.device),
                foreground=foreground,
                key=key(self.options.seed, "translate", *(digests[n] for n in examination.images)),
                condition=trained.condition(examination.attributes),
            )
            try:
                mean, deviation, count = _moments(
                    self._in_unit(torch.where(foreground, x, BACKGROUND)) for x in draws
                )
            except ValueError as error:
                raise DataError(f"{examination.id}: method {self.method}: {error}") from None
        preparation = recorded_preparation(trained.run)
        facts = {
            "case": examination.id,
            "patient": examination.patient,
            "method": self.method,
            "translator": repr(self.translator),
            "synthetic": True,
            "sources": list(trained.image_names(None, of=self.given) or ()),
            "targets": list(self.names),
            "unit": "HU" if trained.preprocessing.intensity.hounsfield else "0 to 1",
            "draws": count,
            "seed": self.options.seed,
            "inputs": {
                name: {"file": file, "sha256": digests[name]}
                for name, file in examination.files.items()
            },
            "read_policy": asdict(trained.preprocessing.policy),
            "forced": list(taken.forced),
            "warnings": list(taken.warnings),
            "network_calls": cost.network_calls,
            **provenance(trained),
        }
        return Translated(
            examination=examination,
            names=self.names,
            mean=mean,
            deviation=deviation,
            lows=tuple(self._limits[0] for _ in self.names),
            grid=InputGrid(trained.preprocessing, ready.record),
            facts=facts,
            cost=cost,
            seen=seen_by(trained.run),
            stripped=preparation is not None and preparation.stripped,
        )

    @property
    def _limits(self) -> tuple[float, ...]:
        return self.trained.preprocessing.intensity.unitless

    def _in_unit(self, x: Float[Tensor, "1 t d h w"]) -> Float[Tensor, "t d h w"]:
        """A draw in the unit of the files."""
        intensity, limits = self.trained.preprocessing.intensity, self._limits
        values = x[0].float().clamp(-1, 1).cpu().numpy()
        pairs = zip(values, self.drawn, strict=True)
        return torch.from_numpy(
            np.stack([intensity.invert(y, limits=limits, channel=i) for y, i in pairs])
        )


def _moments(
    draws: Iterator[Float[Tensor, "t d h w"]],
) -> tuple[Float[Tensor, "t d h w"], Float[Tensor, "t d h w"] | None, int]:
    """Mean and standard deviation of the draws, one at a time (Welford), and their number."""
    mean, squares, count = next(draws).double(), None, 1
    squares = torch.zeros_like(mean)
    for x in draws:
        count += 1
        step = x - mean
        mean = mean + step / count
        squares = squares + step * (x - mean)
    deviation = (squares / (count - 1)).sqrt().float() if count > 1 else None
    return mean.float(), deviation, count


def translating(
    trained: Trained,
    options: TranslateOptions,
    *,
    announce: Callable[[str], None] = lambda line: None,
) -> Translating:
    """Settles a translation; a method that learns sees the run's training volumes.

    Arguments:
        trained: a run that translates
        options: method and the rest
        announce: receives progress lines

    Raises:
        UsageError: no such method, a run that does not translate, or one whose training volumes
            are needed and not reachable
    """
    trained.translates()
    method = options.method or trained.config.method or DEFAULT
    translator = load_translator(method, options.overrides)
    try:
        translator.check(trained.diffusion)
        if translator.learns:
            announce(f"method {Path(method).stem} learns from the run's training volumes")
            translator = translator.fit(_pairs(trained))
    except ValueError as error:
        reason = f"does not suit {trained.run}: {error}"
        raise UsageError(f"method '{method}': {reason}") from None
    return Translating(trained, Path(method).stem, translator, options)


def _pairs(trained: Trained) -> Iterator[TranslationPair]:
    """The run's training volumes, one at a time, in host memory."""
    recipe, c = trained.recipe, trained.channels
    for case in trained.cases("train"):
        ready = trained.preprocessing.prepare(case)
        sources, targets = (ready.x[list(n)] for n in (recipe.given(c), recipe.diffused(c)))
        yield TranslationPair(sources, targets, ready.foreground)


def translate(
    trained: Trained,
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    options: TranslateOptions,
    *,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Translates every case of the sources and writes the results.

    Arguments:
        trained: a run that translates
        source: file, folder or manifest, or several of them
        out: output folder
        options: method and the rest
        overwrite: whether results of other settings in `out` may be replaced
        report: receives a line per case; None shows progress on the terminal
        announce: receives what happens before the first case

    Raises:
        UsageError: method, run, sources and output folder do not fit
        DataError: a source has no cases, or the disk is full
    """
    work = translating(trained, options, announce=announce)
    names = trained.image_names(options.channels, of=work.given)
    find = partial(find_inputs, channels=names)
    found = find_cases(trained, source, find, layout=options.layout)

    def one(examination: Examination, folder: Path) -> Result:
        translated = work(examination)
        facts = vars(translated.cost)
        return Result(translated.write(folder), facts, translated.facts["warnings"])

    return work_through(
        trained, found, out, one, settings=work.settings, overwrite=overwrite, report=report
    )
