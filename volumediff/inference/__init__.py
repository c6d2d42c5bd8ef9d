"""Trained runs on new volumes: files in, maps on the files' own grid, tables and reports out."""
