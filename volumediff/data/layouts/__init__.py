"""Layouts of data sets on the disk, one file each, recognised by the files that are there."""
