"""Artefacts on the disk: written whole, hashed, and verified when they are read."""
