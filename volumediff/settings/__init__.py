"""The configuration of a run: its sections, and how it is read, saved and compared."""
