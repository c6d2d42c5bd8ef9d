"""Methods that learn from a run's volumes once: map of a volume against what was learnt."""
