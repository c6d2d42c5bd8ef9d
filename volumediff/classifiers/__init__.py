"""Classifiers of noisy states: (z_t, t) -> one logit per class."""

from volumediff.classifiers._base import Classifier

__all__ = ["Classifier"]
