"""The search for a method's settings on validation volumes with synthetic lesions."""
