"""The localization head: one file per component or family; YAML files compose them to methods."""
