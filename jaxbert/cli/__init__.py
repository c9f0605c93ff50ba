"""The commands beside training and evaluation: ``jaxbert COMMAND``."""
