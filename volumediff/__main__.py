"""`python -m volumediff` and `accelerate launch -m volumediff`: the command line."""

from volumediff.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
