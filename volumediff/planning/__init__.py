"""Memory and time of a configuration, predicted before it runs and measured."""
