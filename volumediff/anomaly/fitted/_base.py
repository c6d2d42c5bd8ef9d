r"""What a method learns of a run's volumes once, and then measures new volumes against.

    training volumes ─ learn ─▶ Fit ─ stored in the run;     x, Fit ─ find ─▶ map

A method learns from what its supervision says: healthy volumes (unsupervised), healthy volumes
with synthetic lesions (self), or volumes with masks (full). It sees them one at a time and keeps
what its docstring says, whatever their number.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from volumediff.anomaly.example import Example
from volumediff.anomaly.methods._base import Learned, Method
from volumediff.component import Loan, borrowed
from volumediff.data.seen import Seen
from volumediff.errors import DataError
from volumediff.storage.atomic import atomic

__all__ = ["FIT", "Fit", "Fitted"]

FORMAT = "1"
FIT = Loan("fit", what="what was learnt of the run's volumes", required=False)


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """What was learnt.

    Arguments:
        tensors: by name, on the CPU
        volumes: number of volumes that it was learnt from
    """

    tensors: Mapping[str, Tensor]
    volumes: int
    seen: Seen = field(default_factory=Seen)  # nothing that the run itself has not

    def __repr__(self) -> str:
        return f"Fit({self.volumes}, {self.digest[:16]})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, types, shapes and values."""
        found = hashlib.sha256(str(self.volumes).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].contiguous()
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def to(self, like: Tensor) -> dict[str, Tensor]:
        """The tensors on the device of another."""
        return {name: tensor.to(like.device) for name, tensor in self.tensors.items()}

    def save(self, path: Path | str, *, owner: Mapping[str, str]) -> None:
        """Writes one safetensors file.

        Arguments:
            path: of the file
            owner: what it was learnt for, such as method and weights; `load` wants the same
        """
        meta = {
            "format": FORMAT,
            "volumes": str(self.volumes),
            "sha256": self.digest,
            "owner": json.dumps(dict(owner), sort_keys=True),
        }
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            file.write(safetensors.torch.save(tensors, metadata=meta))

    @staticmethod
    def load(path: Path | str, *, owner: Mapping[str, str]) -> "Fit":
        """Reads what `save` wrote.

        Raises:
            DataError: the file is missing, damaged, or was learnt for something else
        """
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError(
                f"{path}: no readable fit ({error}); remove it to fit again."
            ) from error
        if meta.get("format") != FORMAT:
            raise DataError(f"{path}: expected a fit of format {FORMAT}; remove it to fit again.")
        if json.loads(meta["owner"]) != dict(owner):
            raise DataError(
                f"{path}: expected a fit for {dict(owner)}, got one for {meta['owner']}; remove "
                "it to fit again."
            )
        fit = Fit(tensors, int(meta["volumes"]))
        if fit.digest != meta["sha256"]:
            raise DataError(f"{path}: does not match its SHA-256; remove it to fit again.")
        return fit


@dataclass(frozen=True, kw_only=True)
class Fitted(Method, ABC):
    """A method with something learnt.

    `of_model` says whether it learns through the model's weights, so that other weights need
    another fit.

    Arguments:
        fit: what was learnt; handed in, never configured
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
            ValueError: nothing was learnt yet
        """
        if self.fit is None:
            raise ValueError(
                f"fitted {self.name}: expected what was learnt of a run's volumes, got none; "
                "learn it first and pass it as fit."
            )
        return self.fit
