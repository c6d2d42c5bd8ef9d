"""Trained runs, ready for new volumes: loading, auxiliary models, inputs and provenance."""
