"""Features of a trained model, for comparing volumes."""
