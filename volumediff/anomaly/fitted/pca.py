r"""Features that healthy volumes do not have: what a principal subspace leaves over,

.. math:: a_p = |(I - V V^T)(f_p - μ)|.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from volumediff.anomaly.fitted._base import Fit, Fitted
from volumediff.anomaly.fitted._source import FeatureSource
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.component import Requirement

__all__ = ["PCA"]


@dataclass(frozen=True, kw_only=True)
class PCA(Fitted):
    """Reconstruction error of the features by their principal components; no alignment needed.

    One subspace for all positions of the foreground. Mean and scatter matrix are merged volume by
    volume (Chan et al., 1979) in float64, F² numbers for F features, so that the components are
    those of all volumes at once; scikit-learn's incremental PCA would keep truncated ones.

    Arguments:
        features: of the model
        variance: share of the variance that the components explain; one is always left out

    References:
        Ahuja et al. (2019), Probabilistic Modeling of Deep Features for Out-of-Distribution and
        Adversarial Detection, arXiv:1909.11786
        Ndiour et al. (2020), Out-Of-Distribution Detection With Subspace Techniques And
        Probabilistic Modeling Of Features, arXiv:2012.04250 (the reconstruction error)
    """

    features: FeatureSource = field(default_factory=FeatureSource)
    variance: float = 0.995

    def __post_init__(self) -> None:
        if not 0 < self.variance < 1:
            raise ValueError(f"variance: expected a share in (0, 1), got {self.variance}.")

    @property
    def recipe(self) -> tuple[Any, ...]:
        """All arguments."""
        return self.features, self.variance

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """Such features."""
        return (self.features.needed("fitted pca"),)

    def learn(self, model: Learned, examples: Iterable[Example], *, key: int) -> Fit:
        """Mean and components.

        Raises:
            ValueError: no volumes, or no more than one feature
        """
        assert model is not None, "checked"
        volumes, n = 0, 0
        mean = scatter = torch.zeros(())
        for example in examples:
            rows = self.features(model, example)[:, self.features.inside(example)].T.double().cpu()
            m, own = len(rows), rows.mean(0)
            rest, shift = rows - own, own - mean
            scatter = scatter + rest.T @ rest + torch.outer(shift, shift) * (n * m / (n + m))
            mean = mean + shift * (m / (n + m))
            n, volumes = n + m, volumes + 1
        if volumes == 0 or len(mean) < 2:
            found = len(mean) if volumes else 0
            raise ValueError(f"pca: expected volumes with at least two features, got {found}.")
        values, vectors = torch.linalg.eigh(scatter)
        share = values.flip(0).clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
        kept = min(int((share < self.variance).sum()) + 1, len(mean) - 1)
        components = vectors.flip(1)[:, :kept].T
        return Fit({"mean": mean.float(), "components": components.float().contiguous()}, volumes)

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """The error at every position, interpolated to the voxels."""
        assert model is not None, "checked"
        learnt = self.learnt.to(example.x)
        f = self.features(model, example)
        rows = f.flatten(1).T - learnt["mean"]
        rest = rows - rows @ learnt["components"].T @ learnt["components"]
        return RawLocalization(
            self.features.voxels(rest.norm(dim=1).view(f.shape[1:]), example), None
        )
