r"""Policies: what may change on the way down, and what stays the patient's own.

A policy prepares the volume to be corrupted, edits the time grid, hooks into the sampler, blends
the result and weighs the map. Masks live in the volume and reach the state by `space.mask`; each
policy leaves its masks in the trace.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._filters import close, dilate, inside_quantile
from volumediff.anomaly._scene import Scene, classes_of, read_levels
from volumediff.model import Model
from volumediff.samplers._base import Context, Hook
from volumediff.tunable import Tunable, tunable

__all__ = [
    "ClassContrast",
    "Given",
    "Harmonise",
    "Inpaint",
    "Plain",
    "Policy",
    "Stitch",
]


@dataclass(frozen=True)
class Policy(ABC):
    """Edits of one reverse chain.

    `two_pass` says whether the mask comes from a first row, `refines` whether the second pass must
    start from a lower level, `own_map` whether the pseudo-healthy volume's map joins those that
    the policy collects.
    """

    two_pass: ClassVar[bool] = False
    refines: ClassVar[bool] = False
    own_map: ClassVar[bool] = True

    def problem(self, model: Model) -> str | None:
        """Why the policy is meaningless with a model; None where it is not."""
        return None

    @abstractmethod
    def start(self, scene: Scene) -> Float[Tensor, "1 c d h w"]:
        """The volume that the route corrupts."""

    @abstractmethod
    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The time grid of the way down, from the sampler's own."""

    @abstractmethod
    def hook(self, scene: Scene) -> Hook | None:
        """What is done after each prediction."""

    @abstractmethod
    def finish(
        self, scene: Scene, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """The pseudo-healthy volume from the decoded state."""

    @abstractmethod
    def weigh(
        self, scene: Scene, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map of the row from the map of the pseudo-healthy volume."""


@dataclass(frozen=True)
class Plain(Policy):
    """The reverse chain as it is."""

    def start(self, scene: Scene) -> Float[Tensor, "1 c d h w"]:
        """The volume."""
        return scene.x

    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The sampler's grid."""
        return times

    def hook(self, scene: Scene) -> Hook | None:
        """None."""
        return None

    def finish(
        self, scene: Scene, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """The decoded volume."""
        return healthy

    def weigh(
        self, scene: Scene, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map."""
        return scores


@dataclass(frozen=True)
class Stitch(Policy):
    r"""Redraws what a first pass found suspicious and keeps the patient's own tissue elsewhere.

    With the first pass's map a₁ and pseudo-healthy volume x₁, the mask is M = dilate(a₁ > θ). The
    chain starts from M x₁ + (1 - M) x, and after each prediction

    .. math:: \hat z_0 \leftarrow M_z \hat z_0 + (1 - M_z) z_0,

    M_z the mask in state space: outside M_z every further state is an exact draw from
    q(z_s | z_t, z_0) of the patient, and the end is z_0 itself. Each step is walked U times, going
    back by q(z_t | z_s), so that both parts agree. The map is weighed by a₁. Where the space
    loses something, the result is blended once more in the volume.

    Arguments:
        threshold: θ, in units of the first pass's map
        dilate_mm: half-width of the dilation
        resampling: U, visits of each step

    References:
        Bercea et al. (2023), Mask, Stitch, and Re-Sample, arXiv:2305.19643
        Lugmayr et al. (2022), RePaint, arXiv:2201.09865
    """

    two_pass: ClassVar[bool] = True
    refines: ClassVar[bool] = True
    threshold: float = 0.13
    dilate_mm: float = 2.0
    resampling: int = 5

    def __post_init__(self) -> None:
        _check_visits(self.resampling)

    def start(self, scene: Scene) -> Float[Tensor, "1 c d h w"]:
        """The volume, with the suspicious part of the first pass's pseudo-healthy volume."""
        m = self._mask(scene)
        scene.trace["stitch/mask"] = m.bool()
        return m * scene.prior_healthy + (1 - m) * scene.x

    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The grid with U - 1 returns to the start of every step but the last."""
        return _revisited(times, self.resampling)

    def hook(self, scene: Scene) -> Hook | None:
        """Puts the patient's own state back outside the mask."""
        return _keeping(scene, self._mask(scene))

    def finish(
        self, scene: Scene, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """Exact spaces keep the patient's own voxels by construction, others need a blend."""
        return _blended(scene, healthy, self._mask(scene))

    def weigh(
        self, scene: Scene, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map times that of the first pass."""
        return scores * scene.prior_map

    def _mask(self, scene: Scene) -> Tensor:
        m = (scene.prior_map > self.threshold).to(scene.x.dtype)
        return dilate(m, radius_mm=self.dilate_mm, spacing_mm=scene.spacing_mm)


def _check_visits(resampling: int) -> None:
    if resampling < 1:
        raise ValueError(f"resampling: expected at least 1, got {resampling}.")


def _revisited(times: Tensor, visits: int) -> Tensor:
    """The grid with visits - 1 returns to the start of every step but the last."""
    grid = [times[:1]]
    for t, s in pairwise(times):
        again = visits - 1 if s > 0 else 0
        grid.append(torch.stack([s, *[t, s] * again]))
    return torch.cat(grid)


def _keeping(scene: Scene, m: Tensor) -> Hook:
    """Puts the patient's own state back outside a mask of voxels."""
    m = scene.model.space.mask(m)
    own = (1 - m) * scene.encode(scene.x)

    def keep(ctx: Context) -> tuple[Tensor, Tensor]:
        return m * ctx.prediction.x0 + own, ctx.z_t

    return keep


def _blended(scene: Scene, healthy: Tensor, m: Tensor) -> Tensor:
    """The patient's own voxels outside a mask; exact spaces have them already."""
    if scene.model.space.exact:
        return healthy
    return m * healthy + (1 - m) * scene.x


class _Masked(Policy):
    """Redraws a region, given everything around it."""

    resampling: int = 1

    @abstractmethod
    def mask(self, scene: Scene) -> Float[Tensor, "1 1 d h w"]:
        """The region, 1 inside."""

    def start(self, scene: Scene) -> Float[Tensor, "1 c d h w"]:
        """The volume."""
        return scene.x

    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The grid with U - 1 returns to the start of every step but the last."""
        return _revisited(times, self.resampling)

    def hook(self, scene: Scene) -> Hook | None:
        """Puts the patient's own state back outside the region."""
        return _keeping(scene, self.mask(scene))

    def finish(
        self, scene: Scene, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """The volume with the region redrawn."""
        return _blended(scene, healthy, self.mask(scene))

    def weigh(
        self, scene: Scene, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map."""
        return scores


@dataclass(frozen=True, eq=False)
class Keep(_Masked):
    """Redraws a fixed region; what routes with masks of their own use, and no row can name.

    Arguments:
        region: 1 inside
        resampling: U, visits of each step
    """

    region: Float[Tensor, "1 1 d h w"]
    resampling: int = 1

    def mask(self, scene: Scene) -> Float[Tensor, "1 1 d h w"]:
        """The region."""
        return self.region


@dataclass(frozen=True)
class Given(_Masked):
    """Redraws the region that comes with the volume: `Localizer.localize(..., region=...)`.

    Arguments:
        dilate_mm: half-width by which the region grows
        resampling: U, visits of each step
    """

    dilate_mm: float = 0.0
    resampling: int = 1

    def __post_init__(self) -> None:
        _check_visits(self.resampling)

    def mask(self, scene: Scene) -> Float[Tensor, "1 1 d h w"]:
        """The region, dilated.

        Raises:
            ValueError: the volume came without one
        """
        if scene.region is None:
            raise ValueError(
                "policy given: expected a region to redraw, got none; pass region= with the "
                "volume, or use the policy inpaint, which finds one."
            )
        m = scene.region.to(scene.x.dtype)
        return dilate(m, radius_mm=self.dilate_mm, spacing_mm=scene.spacing_mm)


@dataclass(frozen=True)
class Inpaint(_Masked):
    r"""Redraws what a first pass found most abnormal, knowing nothing of it but its surroundings.

    The mask is M = dilate(a₁ > Q_q(a₁)) with the first pass's map a₁ and its quantile in the
    foreground. From t near 1 nothing of the lesion is left inside; outside every state is a draw
    of the patient's own. Unlike `stitch` the map is not weighed, and the level is free.

    Arguments:
        quantile: q, share of the foreground that is kept
        dilate_mm: half-width of the dilation
        resampling: U, visits of each step

    References:
        Lugmayr et al. (2022), RePaint, arXiv:2201.09865; Durrer et al. (2024), Denoising Diffusion
        Models for Inpainting of Healthy Brain Tissue, arXiv:2402.17307, trains on voids instead
    """

    two_pass: ClassVar[bool] = True
    quantile: float = 0.98
    dilate_mm: float = 2.0
    resampling: int = 1

    def __post_init__(self) -> None:
        _check_visits(self.resampling)
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile: expected a share in (0, 1), got {self.quantile}.")

    def mask(self, scene: Scene) -> Float[Tensor, "1 1 d h w"]:
        """The most abnormal part, dilated."""
        top = inside_quantile(scene.prior_map, self.quantile, foreground=scene.foreground)
        m = ((scene.prior_map > top) & scene.foreground).to(scene.x.dtype)
        m = dilate(m, radius_mm=self.dilate_mm, spacing_mm=scene.spacing_mm)
        scene.trace["inpaint/mask"] = m.bool()
        return m


@dataclass(frozen=True)
class ClassContrast(Policy):
    r"""The map is what the class changes: at every step of the chain

    .. math:: a_t = d\big(D(\hat z_0(z_t, c)),\; D(\hat z_0(z_t, c'))\big)

    with d the row's map, c healthy, and c' another class. The maps join the ensemble and the
    residual of the pseudo-healthy volume does not: anatomy that the model cannot keep is the same
    in both.

    Arguments:
        other: index of the class c'; 1 is the first that is not healthy

    References:
        Hu et al. (2023), Conditional Diffusion Models for Weakly Supervised Medical Image
        Segmentation, arXiv:2306.03878, differentiates by the class, with c' 5 % of the way to
        another class among the embeddings; here it is all the way
    """

    own_map: ClassVar[bool] = False
    other: int = 1

    def problem(self, model: Model) -> str | None:
        """Both classes must exist."""
        classes = classes_of(model)
        if 0 < self.other < classes:
            return None
        got = f"got one with {classes}" if classes else "got one without classes"
        return f"expected a class-conditional checkpoint with a class {self.other}, {got}."

    def start(self, scene: Scene) -> Float[Tensor, "1 c d h w"]:
        """The volume."""
        return scene.x

    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The sampler's grid."""
        return times

    def hook(self, scene: Scene) -> Hook | None:
        """Collects a map, changes nothing."""
        label = torch.full_like(scene.condition.label, self.other)
        other = scene.condition.replace(label=label)

        def contrast(ctx: Context) -> tuple[Tensor, Tensor]:
            away = scene.unguided(ctx.z_t, ctx.t, other)
            volumes = (scene.decode(p.x0) for p in (ctx.prediction, away))
            scene.maps.append(scene.distance_of(*volumes))
            return ctx.prediction.x0, ctx.z_t

        return contrast

    def finish(
        self, scene: Scene, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """The decoded volume."""
        return healthy

    def weigh(
        self, scene: Scene, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map."""
        return scores


@dataclass(frozen=True)
class Harmonise(Policy):
    r"""Steers the chain by its own intermediate maps: normal tissue is put back as it was.

    At the first step at or below each level, with the map a in [0, 1] of the volume x̂ that the
    prediction decodes to,

    .. math:: R = \min\big(1, (\mathrm{dilate}(\mathrm{close}(a)) + a) / 2\big), \qquad
              \hat z_0 \leftarrow E(R \hat x + (1 - R) x), \qquad
              z_t \leftarrow α_t \hat z_0 + σ_t (R_z \hat ε + (1 - R_z) ε),

    with the stored noise ε of the forward route and R_z the mask in state space: where nothing is
    put back (R = 1) the chain goes on unchanged, where all is (R = 0) it is again the forward
    process of the patient. The published code uses the stored noise everywhere, which restarts
    the chain. The intermediate maps join the ensemble; the row's map must lie in [0, 1].

    Arguments:
        levels: times at which to harmonise
        log_snrs: the same as log-SNRs; give one of the two
        dilate_mm: half-width of dilation and closing

    References:
        Bercea et al. (2024), Diffusion Models with Implicit Guidance for Medical Anomaly Detection
        (THOR), arXiv:2403.08464
    """

    levels: tuple[float, ...] = tunable((), Tunable.TIME)
    log_snrs: tuple[float, ...] = tunable((), Tunable.LOG_SNR)
    dilate_mm: float = 9.0

    def __post_init__(self) -> None:
        if not read_levels(self.levels, self.log_snrs):
            raise ValueError("harmonise: expected levels or log_snrs, got none.")

    def start(self, scene: Scene) -> Float[Tensor, "1 c d h w"]:
        """The volume."""
        return scene.x

    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The sampler's grid."""
        return times

    def hook(self, scene: Scene) -> Hook | None:
        """Harmonises once per level that the chain passes."""
        levels = read_levels(self.levels, self.log_snrs)
        pending = sorted(level.time(scene.schedule) for level in levels)

        def harmonise(ctx: Context) -> tuple[Tensor, Tensor]:
            t = float(ctx.t[0])
            reached = [u for u in pending if t <= u + 1e-9]  # times are rounded in float64
            if not reached:
                return ctx.prediction.x0, ctx.z_t
            del pending[-len(reached) :]
            return self._blend(scene, ctx, t)

        return harmonise

    def finish(
        self, scene: Scene, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """The decoded volume."""
        return healthy

    def weigh(
        self, scene: Scene, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map."""
        return scores

    def _blend(self, scene: Scene, ctx: Context, t: float) -> tuple[Tensor, Tensor]:
        healthy = scene.decode(ctx.prediction.x0)
        a = scene.compare(healthy)
        size = {"radius_mm": self.dilate_mm, "spacing_mm": scene.spacing_mm}
        r = ((dilate(close(a, **size), **size) + a) / 2).clamp(0, 1)
        scene.maps.append(a)
        scene.trace[f"harmonise/{t:.3f}/map"] = a
        scene.trace[f"harmonise/{t:.3f}/mask"] = r
        x0 = scene.encode(r * healthy + (1 - r) * scene.x)
        m = scene.model.space.mask(r)
        eps = m * ctx.prediction.eps + (1 - m) * scene.noise(-1).to(x0)
        z_t = scene.model.kernel.corrupt(x0, ctx.t, eps)
        return x0, z_t
