"""A model as MTEB evaluates one, of mteb 2: `MTEBEncoder`."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxbert.errors import UserError
from jaxbert.serving import TextModel
from jaxbert.training.hashing import parameter_hash

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ImportError as error:
    fix = 'pip install "jaxbert[mteb]"'
    raise UserError(f"mteb cannot be imported: {error}", "jaxbert.mteb", fix) from error


class MTEBEncoder(AbsEncoder):
    """What `mteb.evaluate` takes.

    A `TextModel` itself is none: it also predicts, and MTEB takes what predicts and has metadata
    for a cross-encoder.

    Args:
      model: as `jaxbert.load` gives it.
      name: of the model, ``ORGANISATION/NAME``; by default that of its folder.

    Attributes:
      model: the same.
      mteb_model_meta: its metadata. MTEB keeps results by name, revision and experiment: here the
        hash of the parameters, and the word pieces at which texts are cut.
    """

    def __init__(self, model: TextModel, name: str = "") -> None:
        self.model = model
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name or f"jaxbert/{model.folder.name}",
                "revision": parameter_hash(model.params),
                "experiment_kwargs": {"max_length": model.max_length},
                "max_tokens": model.max_length,
                "embed_dim": model.config.hidden_size,
                "framework": ["JAX"],
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )

    def encode(self, inputs: Any, *, batch_size: int = 32, **others: Any) -> np.ndarray:
        """The embeddings of texts, each encoded by itself and in one way.

        Args:
          inputs: batches ``{"text": [...]}``, a data loader of N texts.
          batch_size: texts at a time, at most.
          others: task, split, kind of prompt: not read.

        Returns:
          float32 [N, D].

        Raises:
          UserError: embeddings of another precision are asked for.
        """
        if (precision := others.get("precision")) not in (None, "float32"):
            what = f"embeddings are float32, and not {precision}"
            raise UserError(what, "encode_kwargs, key precision", "leave it out")
        return self.model.encode(inputs, batch_size=batch_size)
