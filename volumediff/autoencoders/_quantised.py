r"""Autoencoder with a quantised latent: each latent voxel is replaced by the nearest of K codes,

.. math:: q(z) = e_j, \quad j = \arg\min_i |z - e_i|^2, \qquad
    L = |sg(z) - e_j|^2 + \beta |z - sg(e_j)|^2,

with gradients passed straight through q. A latent is the encoder's output *before* quantisation:
diffusion works on continuous values, and decoding quantises them.
"""

from abc import ABC

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from volumediff import randomness
from volumediff.autoencoders._base import Autoencoder, Generators, Total
from volumediff.autoencoders._codec import Codec
from volumediff.networks._precision import wide

__all__ = ["Quantised", "nearest"]

# Entries of the distance matrix that exist at once: 16 MiB in float32. The whole matrix of a 256^3
# volume at stride 4 with 16384 codes would take 17 GB.
ENTRIES = 2**22
# Forgetting of code use: popularity is averaged over about 100 steps.
DECAY = 0.99


def nearest(
    z: Float[Tensor, "n k"], codes: Float[Tensor, "codes k"], *, entries: int = ENTRIES
) -> Int[Tensor, "n"]:
    """Index of the code nearest to each row of z: least |e|^2 / 2 - <z, e>, in chunks of rows.

    Arguments:
        z: latent voxels
        codes: the codebook
        entries: largest number of distances in memory (at least one row's)
    """
    half_squares = codes.square().sum(dim=1) / 2
    chunks = z.split(max(1, entries // codes.shape[0]))
    return torch.cat([torch.addmm(half_squares, c, codes.T, alpha=-1).argmin(1) for c in chunks])


class Codebook(nn.Module):
    """K vectors, with a record of their use.

    A code that no latent chose for `patience` training steps is dead. It is moved next to a
    popular one, off by noise of the size of the quantisation error: a crowded cell is split. The
    noise is fixed by a key and the counts of a step are summed over its samples, wherever they
    are, so that all processes agree.
    """

    def __init__(self, codes: int, channels: int, *, patience: int) -> None:
        super().__init__()
        # The encoder's features start with a deviation of 0.3.
        self.vectors = nn.Parameter(0.3 * torch.randn(codes, channels))
        self.patience = patience
        self.register_buffer("use", torch.zeros(codes))
        self.register_buffer("idle", torch.zeros(codes, dtype=torch.int64))
        self.register_buffer("error", torch.zeros(()))
        self._fresh: list[Tensor] = []  # counts and squared errors since the last step

    def forward(
        self, z: Float[Tensor, "b k d h w"]
    ) -> tuple[Float[Tensor, "b k d h w"], Int[Tensor, "n"]]:
        """The nearest code of each latent voxel and its index; in float32 or wider."""
        rows = z.movedim(1, -1)
        with torch.no_grad():
            index = nearest(wide(rows.flatten(0, -2)), wide(self.vectors))
        e = F.embedding(index, wide(self.vectors)).view(rows.shape).movedim(-1, 1)
        return e, index

    @torch.no_grad()
    def record(self, index: Int[Tensor, "n"], error: Float[Tensor, ""]) -> None:
        """Counts the codes of a batch and its mean squared quantisation error."""
        counts = torch.bincount(index, minlength=self.vectors.shape[0]).to(self.use.dtype)
        self._fresh.append(torch.cat([counts, (error * index.numel()).view(1).to(counts)]))

    @torch.no_grad()
    def stepped(self, total: Total) -> None:
        """Takes in what was counted since the last step, and moves dead codes."""
        if not self._fresh:
            return
        sums = total(torch.stack(self._fresh).sum(0))
        self._fresh.clear()
        counts, squares = sums[:-1], sums[-1]
        number = counts.sum()
        self.use.mul_(DECAY).add_(counts / number, alpha=1 - DECAY)
        self.error.copy_((squares / number).sqrt())
        self.idle.add_(1).mul_(counts == 0)
        self._revive()

    def _revive(self) -> None:
        """Moves dead codes; without branches on values, so that devices are not waited for."""
        dead = self.idle >= self.patience
        popular = torch.where(dead, -1.0, self.use).argsort(descending=True, stable=True)
        alive = (~dead).sum().clamp(min=1)
        donor = popular[(dead.cumsum(0) - 1).clamp(min=0) % alive]
        held = self.vectors
        vectors = held.full_tensor() if isinstance(held, DTensor) else held
        noise = randomness.normal(
            tuple(vectors.shape), "codebook", dtype=vectors.dtype, device=vectors.device
        )
        moved = torch.where(dead[:, None], vectors[donor] + self.error * noise, vectors)
        if isinstance(held, DTensor):
            # Every process has made all of them, and keeps its share.
            mesh, placements = held.device_mesh, held.placements
            moved = distribute_tensor(moved, mesh, placements, src_data_rank=None)
        held.copy_(moved)
        self.idle.mul_(~dead)


class Quantised(Autoencoder, ABC):
    """An autoencoder whose latents are codes.

    Arguments:
        channels: channels c of the volumes
        latent_channels: channels k of the latent, the length of a code
        codec: encoder and decoder
        codes: size K of the codebook
        commitment: weight beta of the pull of latents towards their codes
        patience: training steps after which an unused code is moved
        adversarial: weight of the generator's loss; 0 leaves the discriminator out
    """

    def __init__(
        self,
        channels: int,
        latent_channels: int,
        *,
        codec: Codec,
        codes: int,
        commitment: float,
        patience: int,
        adversarial: float,
    ) -> None:
        super().__init__(channels, latent_channels, codec=codec, adversarial=adversarial)
        self.commitment = commitment
        self.codec["codebook"] = Codebook(codes, latent_channels, patience=patience)

    def code(self, features: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k d h w"]:
        return features

    def restore(self, latent: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k d h w"]:
        e, _ = self.codec["codebook"](latent)
        return _straight_through(latent, e)

    def stepped(self, total: Total) -> None:
        self.codec["codebook"].stepped(total)

    def bottleneck(
        self, features: Float[Tensor, "b k d h w"], generator: Generators
    ) -> tuple[Float[Tensor, "b k d h w"], Float[Tensor, ""], dict[str, Tensor]]:
        codebook = self.codec["codebook"]
        z = wide(features)
        e, index = codebook(z)
        pull = (z - e.detach()).square().mean()
        push = (z.detach() - e).square().mean()
        if self.training and torch.is_grad_enabled():
            codebook.record(index, pull)
        share = torch.bincount(index, minlength=codebook.vectors.shape[0]) / index.numel()
        used = torch.exp(torch.special.entr(share).sum())
        parts = {"quantisation": pull, "codes": used}
        return _straight_through(features, e), push + self.commitment * pull, parts


def _straight_through(
    z: Float[Tensor, "b k d h w"], e: Float[Tensor, "b k d h w"]
) -> Float[Tensor, "b k d h w"]:
    """The value of e with the gradient of z."""
    return z + (e.to(z.dtype) - z).detach()
