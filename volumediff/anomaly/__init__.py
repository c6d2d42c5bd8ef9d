"""The localization head: one engine of slots, one file per family of blocks, methods as rows."""
