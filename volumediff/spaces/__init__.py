"""State spaces, x <-> z: what is diffused. The file name is the name in configurations."""

from volumediff.spaces._base import StateSpace

__all__ = ["StateSpace"]
