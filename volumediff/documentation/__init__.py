"""The documentation: its pages as a web site, generated reference, and the check of every page."""
