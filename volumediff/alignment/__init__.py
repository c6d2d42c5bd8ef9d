"""From the scanner's grids to a template's, and back."""
