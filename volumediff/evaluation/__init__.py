"""Maps and masks against truth: figures with intervals over patients."""
