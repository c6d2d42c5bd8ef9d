"""Kinds of methods, each with components of its own; the file name is the configuration name."""
