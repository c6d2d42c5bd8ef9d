"""Features of a trained model, to compare volumes by."""
