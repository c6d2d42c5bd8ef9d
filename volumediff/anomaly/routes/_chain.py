"""The reverse chain that several routes share, and what they require of its sampler."""

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly.editing._base import Editing
from volumediff.config import name_of
from volumediff.samplers._base import Sampler

__all__ = ["down", "needs_inverse", "needs_sampler", "no_sampler"]


def needs_sampler(route: str, sampler: Sampler | None) -> None:
    if sampler is None:
        raise ValueError(f"route {route}: expected a sampler, got none; add for example ddim.")


def needs_inverse(route: str, sampler: Sampler | None) -> None:
    needs_sampler(route, sampler)
    if sampler is not None and not sampler.invertible:
        raise ValueError(
            f"route {route}: expected a sampler that can be inverted, such as heun or ddim with "
            f"eta 0, got {name_of(type(sampler))}."
        )


def no_sampler(route: str, sampler: Sampler | None) -> None:
    if sampler is not None:
        raise ValueError(f"route {route}: has no reverse chain; leave the sampler out.")


def down(
    context: MethodContext, z_t: Tensor, t: float, *, editing: Editing, sampler: Sampler
) -> Float[Tensor, "1 c d h w"]:
    """The guided reverse chain from z_t, decoded."""
    denoise, condition = editing.asked(context)
    z_0 = sampler.sample(
        denoise,
        context.model.kernel,
        z_t,
        editing.times(sampler.times(context.schedule, start=t)),
        condition=condition,
        noise=context.noise,
        on_x0=editing.hook(context),
    )
    return editing.finish(context, context.decode(z_0))
