"""A configuration proposed for a data set: what is measured, what is chosen, and why."""
