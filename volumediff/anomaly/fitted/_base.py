r"""Contract of fitted methods: statistics fitted on a run's volumes once, to compare others with.

    training volumes ─ learn ─▶ Fit ─ stored in the run;     x, Fit ─ find ─▶ map

A method learns from what its supervision says: healthy volumes (unsupervised), healthy volumes
with synthetic lesions (self), or volumes with masks (full). It sees them one at a time and keeps
what its docstring says, whatever their number.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned, Method
from volumediff.component import Loan, borrowed
from volumediff.data.seen import Seen
from volumediff.errors import DataError
from volumediff.storage.digests import sha256
from volumediff.storage.records import Record
from volumediff.storage.tensors import load, save

__all__ = ["FIT", "Fit", "Fitted"]

FIT = Loan("fit", what="statistics fitted on the run's volumes", required=False)


class StoredFit(Record):
    """What a fit's file says beside its tensors.

    Arguments:
        volumes: number of volumes that it was fitted on
        owner: what it was fitted for
    """

    format: Literal[2] = 2
    volumes: NonNegativeInt
    owner: dict[str, str]


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """Fitted statistics.

    Arguments:
        tensors: by name, on the CPU
        volumes: number of volumes that it was fitted on
    """

    tensors: Mapping[str, Tensor]
    volumes: int
    seen: Seen = field(default_factory=Seen)  # nothing that the run itself has not

    def __repr__(self) -> str:
        return f"Fit({self.volumes}, {self.digest[:16]})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, types, shapes and values."""
        parts: list[str | bytes] = [str(self.volumes)]
        for name in sorted(self.tensors):
            tensor = self.tensors[name].contiguous()
            parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
            parts.append(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return sha256(*parts)

    @property
    def facts(self) -> dict[str, str]:
        """Nothing for the records of results: it was fitted on the run that they name anyway."""
        return {}

    def to(self, like: Tensor) -> dict[str, Tensor]:
        """The tensors on the device of another."""
        return {name: tensor.to(like.device) for name, tensor in self.tensors.items()}

    def save(self, path: Path, *, owner: Mapping[str, str]) -> None:
        """Writes one safetensors file, whole and with its SHA-256.

        Arguments:
            path: of the file
            owner: what it was fitted for, such as method and weights; `load` wants the same
        """
        save(path, self.tensors, StoredFit(volumes=self.volumes, owner=dict(owner)))

    @staticmethod
    def load(path: Path, *, owner: Mapping[str, str]) -> "Fit":
        """Reads what `save` wrote.

        Raises:
            DataError: the file is missing, damaged, or was fitted for something else
        """
        advice = "remove it to fit again"
        tensors, meta = load(path, StoredFit, advice=advice)
        if meta.owner != dict(owner):
            raise DataError(
                f"{path}: owner: expected a fit for {dict(owner)}, got one for {meta.owner}; "
                f"{advice}."
            )
        return Fit(tensors, meta.volumes)


@dataclass(frozen=True, kw_only=True)
class Fitted(Method, ABC):
    """A method with fitted statistics.

    `of_model` says whether it learns through the model's weights, so that other weights need
    another fit.

    Arguments:
        fit: the fitted statistics; handed in, never configured
    """

    section: ClassVar[str | None] = "fitted"
    of_model: ClassVar[bool] = True
    fit: Fit | None = borrowed(FIT)

    @property
    @abstractmethod
    def recipe(self) -> tuple[Any, ...]:
        """The arguments that shape the fit; with others it is fitted again."""

    @abstractmethod
    def learn(self, model: Learned, examples: Iterable[Example], *, key: int) -> Fit:
        """What is learnt from the volumes.

        Arguments:
            model: with which the method will be used
            examples: volumes as the method's supervision says, gone through once
            key: of all that is drawn

        Raises:
            ValueError: too few volumes, or volumes that do not suit
        """

    @property
    def name(self) -> str:
        """Name in configurations, that of the file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def learnt(self) -> Fit:
        """The fit.

        Raises:
            ValueError: nothing was fitted yet
        """
        if self.fit is None:
            raise ValueError(
                f"fitted {self.name}: expected statistics fitted on a run's volumes, got none; "
                "fit them first and pass them as fit."
            )
        return self.fit
