"""Contracts: what every component of a family must keep, checked on any class, also your own.

`check("map", "my_pkg.maps:Huber")` in Python, or `python -m volumediff.contracts map
my_pkg.maps:Huber` on the command line. The first property that does not hold raises an
AssertionError, in one sentence. Nothing else is needed: tiny volumes and models with known
answers are made on the way.
"""

from volumediff.contracts.checking import check, covered

__all__ = ["check", "covered"]
