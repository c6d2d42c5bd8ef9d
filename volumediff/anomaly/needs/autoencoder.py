"""Requirements on the autoencoder that a run trained, or holds."""

from dataclasses import dataclass
from functools import cache

from volumediff import config
from volumediff.autoencoders import Reconstructor
from volumediff.component import Requirement
from volumediff.config import name_of
from volumediff.features.autoencoder import latent_of
from volumediff.memory.memory_policy import runs_in_slabs
from volumediff.model import Model

__all__ = ["InOnePiece", "Reconstructs", "autoencoder_in"]

Learned = Model | Reconstructor | None


@dataclass(frozen=True)
class Reconstructs(Requirement):
    """The run of an autoencoder, or a latent diffusion run that holds one.

    Arguments:
        kind: of autoencoder
        of: what needs it, for the message
        words_for: what a run of another kind lacks, for the message; None names the kind
    """

    kind: type[Reconstructor] = Reconstructor
    of: str = "autoencoder"
    words_for: str | None = None

    @property
    def configuration(self) -> str | None:
        """The smallest shipped one of the kind, that of a VAE where several will do."""
        names, usual = _smallest(), config.component("autoencoder", "vae")
        kinds = [kind for kind in names if issubclass(kind, self.kind)]
        kinds.sort(key=lambda kind: (kind is not self.kind, kind is not usual))
        return names[kinds[0]] if kinds else None

    def check(self, model: Learned) -> None:
        """There must be one, of that kind."""
        part = autoencoder_in(model)
        if not isinstance(part, self.kind):
            got = name_of(type(part))
            if self.words_for is None:
                raise ValueError(
                    f"{self.of}: expected the run of a {name_of(self.kind)}, got one of a "
                    f"{got}; use a run that trains it, see configs/autoencoders."
                )
            raise ValueError(
                f"{self.of}: expected {self.words_for}, got {got}; use a run of "
                f"configs/autoencoders/{self.configuration}.yaml."
            )


@dataclass(frozen=True)
class InOnePiece(Requirement):
    """An autoencoder whose gradient can be taken.

    Arguments:
        of: what needs it, for the message
    """

    of: str

    def check(self, model: Learned) -> None:
        """Nothing of it may run in slabs."""
        if any(runs_in_slabs(part, "forward") for part in autoencoder_in(model).passes):
            raise ValueError(
                f"{self.of}: expected an autoencoder that runs in one piece, whose gradient can "
                "be taken, got one in slabs; use memory.slab=null memory.offload=false "
                "processes.domain=1."
            )


def autoencoder_in(model: Learned) -> Reconstructor:
    """The autoencoder that a run's model is, or that its latent space holds.

    Raises:
        ValueError: it has none
    """
    if model is None:
        raise ValueError("expected a trained model, got none; only baselines work without.")
    if not model.diffuses:
        return model
    latent = latent_of(model.space)
    if latent is None or latent is not model.space:
        kind = name_of(type(model.space))
        raise ValueError(
            "expected the run of an autoencoder, or of a diffusion model of latents, got one "
            f"of states of the space {kind}; train configs/autoencoders/vae_64.yaml."
        )
    return latent.autoencoder


@cache
def _smallest() -> dict[type, str]:
    """The smallest shipped configuration of every kind of autoencoder."""
    found: dict[type, list[str]] = {}
    for name in config.shipped("autoencoders"):
        spec = config.load(config.config_path("autoencoders", name))["autoencoder"]
        found.setdefault(config.component("autoencoder", spec["name"]), []).append(name)
    return {kind: min(n, key=lambda s: int(s.rpartition("_")[2])) for kind, n in found.items()}
