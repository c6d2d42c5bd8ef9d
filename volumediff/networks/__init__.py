"""Networks: (z_t, t, condition) -> output, built from the few layers of `_layers`."""
