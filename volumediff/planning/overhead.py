r"""From traced bytes to the memory that a card must have.

.. math:: \text{card} = \text{context} + w_0 + \min(w_1 m, w_2) + (1 + a)\, m

for a traced peak of m GB: the CUDA context, workspaces of the convolutions (w_0 in any case, then
w_1 per GB up to w_2), and what the allocator loses to fragmentation, a.

NOT YET CALIBRATED ON THE KERNELS OF THIS PACKAGE. The numbers are an upper envelope of what was
published for networks of this kind, next to traces of the same networks with the same definition
of a peak (`PUBLISHED`): no published peak lies above it, the nearest ones touch it. Frameworks
that keep float32 copies and materialised codebooks set it, so that it is likely too high here.
"""

from dataclasses import dataclass

__all__ = ["OVERHEAD", "PUBLISHED", "Overhead"]

# (traced GB, published GB of the card). WDM: model card pfriedri/wdm-3d; MAISI: NV-Generate-CTMR,
# docs/performance.md, A100-80G. Training traces are of the first step, without moments.
PUBLISHED = {
    "WDM inference 128": (0.73, 2.55),
    "WDM inference 256": (4.36, 7.27),
    "MAISI decoder, untiled": (13.8, 22.7),
    "MAISI decoder, 48x48x64 tile": (7.9, 15.4),
    "MAISI diffusion training, 256": (3.9, 8.0),
    "MAISI diffusion training, 512": (23.7, 39.0),
}


@dataclass(frozen=True)
class Overhead:
    """What a card holds beside live tensors, in GB of 1e9 bytes.

    Arguments:
        context: of CUDA and its libraries
        workspace: w_0
        growth: w_1, per traced GB
        growth_most: w_2
        slack: a, of the allocator
        source: where the numbers come from
    """

    context: float
    workspace: float
    growth: float
    growth_most: float
    slack: float
    source: str

    def card_gb(self, live_gb: float) -> float:
        """Memory of the card for a traced peak."""
        workspace = self.workspace + min(self.growth * live_gb, self.growth_most)
        return self.context + workspace + (1 + self.slack) * live_gb


# The upper hull of PUBLISHED is (.73, 2.55), (7.9, 15.4), (23.7, 39): lines 1.242 + 1.792 m and
# 3.600 + 1.494 m. Rounded up; 0.5 GB is the usual size of a context.
OVERHEAD = Overhead(
    context=0.5,
    workspace=0.75,
    growth=0.30,
    growth_most=2.4,
    slack=0.5,
    source="envelope of published peaks of WDM and MAISI; not calibrated on these kernels yet",
)
