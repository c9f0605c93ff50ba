"""Optimiser, sharding, the jitted step, checkpoints and the loop."""
