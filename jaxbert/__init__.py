"""jaxbert makes a small, fast BERT out of a big one, in JAX.

``jaxbert.load`` gives a model to ask, ``jaxbert.distill`` makes one from Python. Importing the
package imports neither jax nor anything else: what is asked for is imported then.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "distill", "load"]

_PLACES = {"load": "jaxbert.serving", "distill": "jaxbert.notebook"}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
