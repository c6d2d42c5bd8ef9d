"""Translation: channels that were not measured, made from those that were."""
