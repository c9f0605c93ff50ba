"""Metrics, predictions, latency and the report of a run."""
