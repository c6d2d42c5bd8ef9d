r"""Synthetic degradations of healthy volumes, for training without lesions.

    foreign_patch    (1 - a) x + a x_donor in a box (FPI)
    poisson_patch    the same, with a Poisson equation in place of the sum (PII)
    natural_patch    resized patches of other places, by a Poisson equation, in several boxes (NSA)
    disentangled     shape, texture and intensity drawn apart (DAG of DISYRE v2)
    coarse           coarse noise everywhere (DAE)
    mood             spheres of eight kinds (MOOD challenge)
    texture_patch    texture of another place where smooth noise is high (DRAEM)
    bias_field       a smooth change of brightness, as by a receive coil
    fluid            lesions whose shapes a flow has made, with mass effect, vessels (UNA)
    pasted           real lesion masks with random looks (SynthStroke)
    mixture          one of several, by the key

These are what self-supervised methods learn from. They share no generator with `anomalies`, on
which checkpoints, thresholds and tables rest: what a method was trained on must not be what it is
chosen by or tested on.
"""

from volumediff.data.corruptions._base import Corruption

__all__ = ["Corruption"]
