"""The Hugging Face Hub: repositories by name, fetched as a whole, and folders uploaded to them."""
