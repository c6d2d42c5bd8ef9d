"""Training: one loop on Accelerate for any pipeline and any autoencoder, resumable at any step."""
