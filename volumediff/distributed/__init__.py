"""Several processes that work as one: launch, sums over processes, stop signals."""
