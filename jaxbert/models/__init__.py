"""Pure Flax Linen modules: they know no data, loss, mesh or file."""
