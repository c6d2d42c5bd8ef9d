"""A method on healthy volumes of a run or a site: normalization, thresholds, fitted statistics."""
