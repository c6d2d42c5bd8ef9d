"""The generated pages of the reference, each from the code that it is about."""
