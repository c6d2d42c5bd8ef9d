"""One file per command of the program; `volumediff.cli` puts them together."""
