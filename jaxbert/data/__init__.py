"""Text to packed batches, on the host, with NumPy."""
