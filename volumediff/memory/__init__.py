"""What a run may cost in memory, and how it stays below that."""
