r"""Whether sampler, kernel, recipe, space, noise and method fit, and why not: all decided here.

Every part declares what it can do and what it needs as plain class attributes:

    kernel    path, predicts, classes     schedule  variance_preserving, zero_terminal_snr
    recipe    paths, exact, whole, teaches, marks, reference, …       noise     kind
    space     exact, binary               corruption  kind                  times     support
    sampler   paths, reads, invertible    route, editing  paths             model     diffuses

Names and ancestry of classes decide nothing: a subclass inherits what its parent declares and fits
wherever that does, and a new part fits wherever what it declares is enough. What declares nothing
fits nowhere. A function gives the reason, one line that says what is expected, what came and what
to do; None where the parts fit. `require` raises it.

`training` is about what is trained, `features` about what is learnt from the features of a model,
`chains` about what walks or edits states, `methods` about what a trained model is asked for.
"""

__all__ = ["require"]


def require(problem: str | None, error: type[Exception] = ValueError) -> None:
    """Raises the error with the reason, where there is one."""
    if problem is not None:
        raise error(problem)
