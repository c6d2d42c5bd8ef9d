"""`python -m volumediff.contracts FAMILY COMPONENT [argument=value ...]`: checks one component."""

import sys

from volumediff.config import overridden
from volumediff.contracts.checking import check, covered
from volumediff.errors import UsageError


def main(words: list[str]) -> int:
    """0 where the contract holds, 1 where it does not, 2 for what cannot be checked."""
    if len(words) < 2:
        sys.stderr.write(f"{__doc__}\nFamilies: {', '.join(covered())}.\n")
        return 2
    family, component, *rest = words
    try:
        check(family, component, **overridden({}, rest))
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except AssertionError as error:
        sys.stderr.write(f"{family} {component}: {error}\n")
        return 1
    sys.stdout.write(f"{family} {component}: keeps the contract.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
