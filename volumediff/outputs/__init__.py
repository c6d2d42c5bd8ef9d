"""Results on the disk: their names, how they are written, and which are finished."""
