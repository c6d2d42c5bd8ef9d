"""Type checks of the tests, without the price of array shapes where there are none.

The import hook of jaxtyping wraps every function of the package for the shapes that its arguments
share, which costs far more than the check of plain types: with it, slabs and traces took twice as
long. A function none of whose annotations is an array shares no shape, so that the type checker
alone proves the same. Whatever is not certain (quoted names, generators) stays with jaxtyping.
"""

import inspect
from functools import partial
from types import FunctionType
from typing import Any, ForwardRef, get_args

import jaxtyping

__all__ = ["install"]

whole = jaxtyping.jaxtyped


def install() -> None:
    """Replaces the decorator that the import hook uses; before the package is imported."""
    jaxtyping.jaxtyped = checked


def checked(fn: Any = None, *, typechecker: Any) -> Any:
    """What the hook puts on every function and class."""
    if fn is None:
        return partial(checked, typechecker=typechecker)
    if isinstance(fn, FunctionType) and not inspect.isgeneratorfunction(fn):
        annotations = fn.__annotations__.values()
        if not annotations:
            return fn
        if not any(may_be_array(a) for a in annotations):
            return typechecker(fn)
    return whole(fn, typechecker=typechecker)


def may_be_array(annotation: Any) -> bool:
    """Whether an annotation has, or may have, the shape of an array in it."""
    if isinstance(annotation, str | ForwardRef):
        return True
    if isinstance(annotation, list | tuple):  # the arguments of a Callable
        return any(map(may_be_array, annotation))
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(may_be_array, get_args(annotation)))
