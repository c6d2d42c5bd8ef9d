"""The state that training updates, step by step: weights, average, moments, rate, figures."""
