"""Where a classifier of noisy states looks; no chain, and no pseudo-healthy volume."""

from dataclasses import dataclass
from typing import ClassVar

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level, read_levels
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import no_sampler
from volumediff.classification import CLASSIFIER, ClassPosterior
from volumediff.component import borrowed, presentation
from volumediff.condition import HEALTHY
from volumediff.samplers._base import Sampler
from volumediff.tunable import Tunable, tunable

__all__ = ["Saliency"]


@dataclass(frozen=True)
class Saliency(Route):
    r"""Where a classifier of noisy states looks,

    .. math:: a = U \, \big\| \nabla_{z_t} \log C(\text{healthy} | z_t, t) \big\|

    with the norm over the channels of each state voxel and U the interpolation to voxels; one
    map per level. The method's own map is not used. The gradient stays in state space: through an
    autoencoder it would cost the memory of its training.

    Arguments:
        levels: times t of the noisy states, in (0, 1]
        log_snrs: the same as log-SNRs; give one of the two
        run: folder of the classifier's run; None takes that of the whole method
        classifier: of the noisy states of this model; handed in, never configured

    References:
        Simonyan et al. (2014), Deep Inside Convolutional Networks, arXiv:1312.6034
    """

    chain: ClassVar[bool] = False
    own_map: ClassVar[bool] = False
    levels: tuple[float, ...] = tunable((), Tunable.TIME)
    log_snrs: tuple[float, ...] = tunable((), Tunable.LOG_SNR)
    run: str | None = presentation(None)
    classifier: ClassPosterior | None = borrowed(CLASSIFIER)

    def __post_init__(self) -> None:
        if not self.noise_levels():
            raise ValueError("saliency: expected levels or log_snrs, got none.")

    def noise_levels(self) -> list[Level]:
        """The levels."""
        return read_levels(self.levels, self.log_snrs)

    def check(self, sampler: Sampler | None) -> None:
        """A sampler would never be used."""
        no_sampler("saliency", sampler)

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """No volume; one map per level, each with its own noise."""
        if self.classifier is None:
            raise ValueError("saliency: expected a trained classifier, got none.")
        z_0 = context.encode(context.x)
        for i, each in enumerate([level] if level else self.noise_levels()):
            t = each.time(context.schedule)
            z_t = context.noised(z_0, t, draw=i)
            gradient = self.classifier.gradient(z_t, context.times(t), label=HEALTHY)
            norm = gradient.square().sum(dim=1, keepdim=True).sqrt()
            context.maps.append(context.voxels(norm))
        yield from ()
