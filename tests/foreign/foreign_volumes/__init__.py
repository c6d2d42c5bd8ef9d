"""Parts for volumediff by somebody else, one file per family."""
