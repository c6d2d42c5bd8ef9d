"""Training samples: volumes of a data set, split, measured, prepared, and drawn by key."""
