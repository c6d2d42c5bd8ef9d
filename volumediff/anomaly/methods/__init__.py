"""Kinds of methods, each with slots of its own: the file name is the name in configurations."""
