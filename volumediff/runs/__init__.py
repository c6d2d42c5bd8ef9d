"""A trained run, ready for new volumes: loading, models it borrows, what it has seen."""
