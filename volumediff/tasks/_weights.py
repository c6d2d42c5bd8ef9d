"""The weights of a task: which are trained, which an adapter corrects, what a checkpoint holds.

frozen      those of borrowed runs: known by their digest, never written
fixed       those that an adapter corrects: known by the digest of their run, never written
trained     all others, or the corrections of an adapter
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from volumediff.adapters._base import Adapter, attach, merge
from volumediff.storage.digests import sha256

__all__ = ["TaskWeights"]


class TaskWeights:
    """The weights of a module.

    Arguments:
        module: everything that has some
        digest: SHA-256 of those that are borrowed and not trained
        frozen: the parts of the module that hold them
    """

    def __init__(self, module: nn.Module, *, digest: str, frozen: Sequence[nn.Module]) -> None:
        self.module, self.digest, self.frozen = module, digest, tuple(frozen)
        # Of the weights that an adapter corrects: their digest, and their names.
        self._base, self._fixed = "", frozenset[str]()

    @property
    def borrowed(self) -> str:
        """SHA-256 of all weights that are not trained: `digest`, and those that are adapted."""
        return sha256(self._base, self.digest) if self._base else self.digest

    def adapt(self, adapter: Adapter, *, base: str) -> None:
        """Freezes the weights and trains corrections of them, which checkpoints then hold alone.

        Arguments:
            adapter: gives the corrections
            base: SHA-256 of the weights

        Raises:
            ValueError: there is nothing to correct
        """
        attach(adapter, self.module)
        frozen = (n for n, p in self.module.named_parameters() if not p.requires_grad)
        self._base, self._fixed = base, frozenset(frozen)

    def merge(self) -> None:
        """Writes corrected weights in place of the frozen ones: the task of a plain run."""
        merge(self.module)
        self._base, self._fixed = "", frozenset()

    def trained(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by player."""
        mine = {id(p) for p in self.trained().values()}
        return {
            player: [p for p in part.parameters() if id(p) in mine]
            for player, part in self.modules().items()
        }

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers that belong to a checkpoint: all but those of frozen parts, and
        but the weights that an adapter corrects."""
        return {n: t for n, t in self.module.state_dict().items() if not self._is_elsewhere(n)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors of a trained checkpoint."""
        return {name: tuple(tensor.shape) for name, tensor in self.state().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts the tensors of `state` back.

        Raises:
            RuntimeError: names or shapes differ
        """
        kept = {n: t for n, t in self.module.state_dict().items() if self._is_elsewhere(n)}
        self.module.load_state_dict({**tensors, **kept}, strict=True)

    def _is_elsewhere(self, name: str) -> bool:
        return name in self._fixed or name.startswith(self._prefixes())

    def _prefixes(self) -> tuple[str, ...]:
        mine = {id(part) for part in self.frozen}
        return tuple(f"{n}." for n, part in self.module.named_modules() if id(part) in mine)
