"""The state that training updates: weights, their average, moments, learning rate, metrics."""
