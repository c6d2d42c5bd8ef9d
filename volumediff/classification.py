r"""Classification of noisy states, log C(y | z_t, t), and what its gradient is for,

.. math:: \nabla_{z_t} \log p(z_t | y) = \nabla_{z_t} \log p(z_t) + \nabla_{z_t} \log p(y | z_t).

The classifier sees the states of a diffusion model: the same space with the same normalisation,
the same kernel, the same noise. What is drawn for a sample depends on its key alone, as in
`volumediff.model`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.classifiers import Classifier
from volumediff.component import Loan
from volumediff.data.seen import Seen
from volumediff.kernels._base import Kernel
from volumediff.model import state_noise
from volumediff.noise import GaussianNoise, Noise
from volumediff.schedules._base import Schedule
from volumediff.spaces._base import StateSpace
from volumediff.times._base import TimeDensity
from volumediff.times.uniform import Uniform

__all__ = ["CLASSIFIER", "ClassPosterior", "StateClassifier"]

State = Float[Tensor, "b k d h w"]
CLASSIFIER = Loan(
    "classifier",
    what="a classifier of this model's noisy states",
    configurations="classifiers",
    option="classifier",
)


class StateClassifier(nn.Module):
    """C(y | z_t, t), as a state space, a kernel and a classifier.

    Arguments:
        space: volumes <-> states, that of the diffusion model
        kernel: how states are corrupted, that of the diffusion model
        classifier: (z_t, t) -> logits
        dtype: in which the classifier computes; states, times, logits and losses are wider
        time_density: of the training times
        noise_field: what volumes are corrupted with
    """

    def __init__(
        self,
        space: StateSpace,
        kernel: Kernel,
        classifier: Classifier,
        *,
        dtype: torch.dtype = torch.float32,
        time_density: TimeDensity = Uniform(),  # noqa: B008 - frozen
        noise_field: Noise = GaussianNoise(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        self.space = space
        self.kernel = kernel
        self.classifier = classifier
        self.dtype = dtype
        self.time_density = time_density
        self.noise_field = noise_field

    def log_probability(self, z_t: State, t: Float[Tensor, "b"]) -> Float[Tensor, "b l"]:
        """log C(y | z_t, t) of every class."""
        seen, clock = self.kernel.shown(z_t, t)
        return F.log_softmax(self.classifier(seen.to(self.dtype), clock.to(z_t.dtype)), dim=1)

    def loss(self, batch: Batch) -> Float[Tensor, "b"]:
        """Cross-entropy of each sample at its own time.

        Raises:
            ValueError: the batch has no classes
        """
        if batch.condition.label is None:
            raise ValueError("expected Batch.condition.label, the classes; got none.")
        with torch.no_grad():
            z_0 = self.space.encode(batch.x)
            t = self.time_density.draw(batch.keys, self.kernel.schedule, device=z_0.device)
            shape = tuple(batch.x.shape[1:])
            noise = state_noise(
                self.space, self.noise_field, batch.keys, shape, "loss", device=z_0.device
            ).to(z_0)
            z_t = self.kernel.corrupt(z_0, t, noise)
        return F.nll_loss(self.log_probability(z_t, t), batch.condition.label, reduction="none")


@dataclass(frozen=True)
class ClassPosterior:
    """p(y | z_t) as guidance and saliency take it.

    Arguments:
        log_probability: (z_t, t) -> log-probability of every class, differentiable in z_t
        schedule: signal and noise of the states
        classes: number of classes, `HEALTHY` first
        digest: identifies the weights; calibrations belong to it
        seen: what they were trained on
        facts: where they come from, for the records of results
    """

    log_probability: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    schedule: Schedule = field(repr=False)
    classes: int
    digest: str
    seen: Seen = field(default_factory=Seen, repr=False, compare=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def gradient(self, z_t: State, t: Float[Tensor, "b"], *, label: int) -> State:
        """The gradient of log p(label | z_t) in z_t, sample by sample, at least in float32.

        Memory is that of one backward pass through the classifier; weights that are frozen cost
        nothing.
        """
        dtype = torch.promote_types(z_t.dtype, torch.float32)
        with torch.enable_grad():  # samplers and localizers run without
            z = z_t.detach().to(dtype).requires_grad_()
            chosen = self.log_probability(z, t)[:, label].sum()
            (gradient,) = torch.autograd.grad(chosen, z)
        return gradient.to(z_t.dtype)
