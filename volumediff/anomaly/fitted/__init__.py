"""Fitted methods: statistics of a run's volumes, and maps of how far new volumes are from them."""
