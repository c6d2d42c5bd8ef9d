"""Layouts of data sets on a disk: a file each, recognised by the files that are there."""
