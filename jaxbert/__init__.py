"""jaxbert makes a small, fast BERT out of a big one, in JAX."""

__version__ = "0.1.0"
