"""The config: all mistakes are said at once, every recipe resolves, every key is read."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
import time

import commands
import pytest

from jaxbert.cli.main import COMMANDS, main
from jaxbert.config import (
    MeshConfig,
    PhaseConfig,
    RunConfig,
    StudentConfig,
    TaskConfig,
    TermConfig,
)
from jaxbert.errors import UserError, UserErrors
from jaxbert.recipe import load_recipe, parse_argument, resolve

SECTIONS = (RunConfig, StudentConfig, TaskConfig, MeshConfig, PhaseConfig, TermConfig)
CONFIGS = sorted(commands.ROOT.glob("configs/*.py"))
RECIPE = {
    "phases": ("one", "two"),
    "teacher": "pkg:teacher",
    "corpus": "pkg:corpus",
    "task": {"name": "sst2"},
    "one": {
        "objective": "distill",
        "preset": "tinybert",
        "data": "corpus",
        "teacher": "given_teacher",
        "trains": "first",
    },
    "two": {"objective": "finetune", "start": "first", "trains": "student"},
}


def lines(recipe=RECIPE, **overrides: str) -> list[str]:
    """What is wrong, a line each; a double underscore stands for a dot."""
    try:
        resolve(recipe, {key.replace("__", "."): value for key, value in overrides.items()})
    except UserErrors as error:
        return error.lines
    return []


def with_phase(name: str, **keys: object) -> dict:
    return {**RECIPE, name: {**RECIPE[name], **keys}}


# --- values --------------------------------------------------------------------------------------


def test_overrides_are_read_by_the_type_of_their_field():
    config = resolve(
        RECIPE,
        {
            "seed": "7",
            "teacher": "12",
            "student.num_layers": "2",
            "mesh.data": "-1",
            "one.learning_rate": "1",
            "one.eps": "1e-8",
            "one.packing": "False",
            "one.bias_correction": "true",
            "one.terms.hidden.student_layers": "(2, 4)",
            "one.terms.extra.feature": "cls",
            "two.steps": "1_000",
            "num_documents": "0",
        },
    )
    assert (config.seed, config.teacher, config.student.num_layers) == (7, "12", 2)
    one = config.sections["one"]
    assert one.learning_rate == 1.0 and isinstance(one.learning_rate, float)
    assert (one.eps, one.packing, one.bias_correction) == (1e-8, False, True)
    assert one.terms["hidden"].student_layers == (2, 4) and one.terms["extra"].feature == "cls"
    assert set(one.terms) == {"attention", "hidden", "embedding", "extra"}
    assert config.sections["two"].steps == 1000
    assert config.mesh == MeshConfig() and config.num_documents == 0


def test_a_resolved_config_is_what_to_dict_says():
    config = resolve(RECIPE, {"one.steps": "3"})
    assert resolve(config.to_dict(), {}) == config


def test_an_override_does_not_change_the_recipe():
    before = repr(RECIPE)
    resolve(RECIPE, {"one.steps": "3", "student.num_layers": "2"})
    assert repr(RECIPE) == before


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", "many", "'many' is not a whole number, config key seed; give a whole number"),
        ("seed", "1.5", "'1.5' is not a whole number"),
        ("seed", "-1", "-1 is out of range, config key seed; give at least 0"),
        ("seed", str(2**31), "give at most 2147483647"),
        ("dtype", "float16", "give one of '', 'bfloat16', 'float32'"),
        ("max_length", "0", "0 is out of range, config key max_length; give at least 8"),
        ("student", "big", "it is a section, config key student; give the keys inside it"),
        ("student.preset", "tiny", "give one of 'tinybert4', 'tinybert6'"),
        ("student.hidden_size", "-8", "config key student.hidden_size; give at least 0"),
        ("mesh.model", "0", "config key mesh.model; give at least 1"),
        ("one", "3", "a phase is a section, config key one"),
        ("one.steps", "0", "0 is out of range, config key one.steps; give at least 1"),
        ("one.learning_rate", "fast", "'fast' is not a number, config key one.learning_rate"),
        ("one.learning_rate", "nan", "nan is out of range, config key one.learning_rate"),
        ("one.learning_rate", "inf", "give a finite number"),
        ("one.packing", "1", "'1' is not true or false, config key one.packing"),
        ("one.dropout", "1", "1.0 is out of range, config key one.dropout; give at most 0.99"),
        ("one.terms.hidden.student_layers", "2,x", "config key one.terms.hidden.student_layers"),
        ("one.terms.hidden.student_layers", "0,2", "student_layers; give at least 1"),
        ("one.terms.hidden.wait", "1", "config key one.terms.hidden.wait; did you mean weight?"),
        ("one.terms.hidden", "1", "it is a section, config key one.terms.hidden; give the keys"),
        ("one.terms.loss.weight", "1", "'loss' cannot name a term, config key one.terms.loss"),
        (
            "one.terms.attenton.weight",
            "0",
            "config key one.terms.attenton; did you mean attention?",
        ),
        ("one.terms.hidden.final_weight", "-0.5", "-0.5 is no weight, config key one.terms.hidden"),
        ("one.terms.tokens.feature", "cls", "'tokens' cannot name a term"),
        ("one.preset", "tinbert", "config key one.preset; give one of '', 'tinybert'"),
        ("seed.x", "1", "seed has no keys, config key seed.x"),
    ],
)
def test_a_wrong_value_is_said_with_its_key_and_what_to_give(key, value, said):
    (line,) = lines(**{key.replace(".", "__"): value})
    assert said in line


@pytest.mark.parametrize(
    ("value", "said"),
    [(True, "'True' is not a number"), ("1e-3", "is not a number"), (None, "is not a number")],
)
def test_a_recipe_value_of_another_type_is_refused(value, said):
    (line,) = lines(with_phase("one", learning_rate=value))
    assert said in line and "config key one.learning_rate" in line


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("sede", "config key sede; did you mean seed?"),
        ("student.num_layer", "config key student.num_layer; did you mean num_layers?"),
        ("one.stepz", "config key one.stepz; did you mean steps?"),
        ("oen.steps", "config key oen; did you mean one?"),
        ("zzz", "config key zzz; known keys: "),
        ("sections", "config key sections"),
        ("one.steps.more", "config key one.steps"),
    ],
)
def test_an_unknown_key_is_said_with_the_nearest_one(key, said):
    (line,) = lines(**{key.replace(".", "__"): "1"})
    assert line.startswith("there is no such key") and said in line


# --- phases --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (with_phase("one", start="second"), "no earlier phase trains 'second', config key one.st"),
        (with_phase("one", start="", trains="x"), "no earlier phase trains ''"),
        (with_phase("one", teacher=""), "no earlier phase trains '', config key one.teacher"),
        (with_phase("two", teacher="first"), "finetune has no teacher, config key two.teacher"),
        (
            with_phase("two", teacher_cache="layers"),
            "outputs are kept of one teacher, of text that is not masked, without padded means, "
            "config key two.teacher_cache; give auto or none",
        ),
        (
            with_phase("one", compat="huawei", packing=False, teacher_cache="layers"),
            "without padded means, config key one.teacher_cache; give auto or none",
        ),
        (with_phase("two", data="corpus"), "needs labelled data, config key two.data"),
        (with_phase("one", compat="huawei"), "need one example a row, config key one.packing"),
        (
            {**with_phase("one", eval_every=5), "task": {}, "phases": ("one",)},
            "is measured on a task, and there is none, config key one.eval_every",
        ),
        (with_phase("two", select="best"), "nothing is evaluated to select by, config key two.sel"),
        (
            with_phase("two", clip="none", clip_norm=2.0),
            "nothing is clipped, config key two.clip",
        ),
        (with_phase("one", terms={"spike": {"feature": "cls"}}), "'spike' cannot name a term"),
        (
            {**RECIPE, "task": {"name": "stsb", "kind": "similarity"}},
            "a task of similarity trains no head, and finetune does, config key task.kind",
        ),
        (with_phase("one", terms={"x": {"feature": "logits"}}), "terms of logits need labelled"),
        (
            with_phase("one", data="task", terms={"x": {"feature": "mlm_logits"}}),
            "terms of mlm_logits read unlabelled text, config key one.data; give corpus",
        ),
        (with_phase("one", preset=""), "nothing is distilled, config key one.terms; give a preset"),
        (with_phase("two", preset="logits"), "finetune has no terms, config key two.terms"),
        (
            with_phase("one", accumulation=2, terms={"x": {"feature": "logits", "loss": "dist"}}),
            "dist correlates over a whole batch, which accumulation cuts",
        ),
        (
            with_phase("one", teacher="given_teacher + second"),
            "no earlier phase trains 'second', config key one.teacher",
        ),
        (with_phase("two", accumulation=64), "a batch of 32 cannot be cut into 64"),
        (with_phase("one", trains="given_teacher", start="student"), "cannot name a trained mod"),
        (with_phase("two", trains="a/b"), "'a/b' cannot name a trained model"),
        (with_phase("two", trains=".."), "'..' cannot name a trained model"),
        (with_phase("two", trains="first"), "an earlier phase trains 'first', config key two.tr"),
        ({**RECIPE, "teacher": ""}, "there is no teacher, config key teacher"),
        ({**RECIPE, "vocabulary": "mine"}, "has a vocabulary of its own, config key vocabulary"),
        (with_phase("one", objective="pretrain"), "pretrain has no teacher, config key one.teac"),
        (
            with_phase("one", objective="pretrain", teacher="", data="task"),
            "pretrain reads unlabelled text, config key one.data; give corpus",
        ),
        (
            with_phase("one", objective="pretrain", teacher="", compat="huawei"),
            "pretrain has no padded means, config key one.compat",
        ),
        (
            {**RECIPE, "augmentation": {"model": "m", "copies": 3}},
            "no phase reads copies, config key augmentation.model; give a phase data=augmentation",
        ),
        (
            {**RECIPE, "augmentation": {"copies": 3}},
            "no phase reads copies, config key augmentation.copies; give a phase data=augmentation",
        ),
        *(
            (with_phase(phase, **{key: value}), f"{what}, config key {phase}.{key}; remove it")
            for phase in ("one", "two")
            for key, value, what in (
                ("freeze_encoder", True, "pretrain alone can hold its encoder"),
                ("nsp", True, "pretrain alone learns next sentences"),
                ("masking_rate", 0.5, "the phase masks no text"),
                ("whole_words", True, "the phase masks no text"),
            )
        ),
        ({**RECIPE, "corpus": ""}, "the phase one reads it and it is empty, config key corpus"),
        ({**RECIPE, "task": {}}, "the phase two reads it and it is empty, config key task"),
        ({**RECIPE, "phases": ("one", "two", "three")}, "the phase 'three' has no section"),
        ({**RECIPE, "phases": ("one", "two", "seed")}, "'seed' cannot name a phase"),
        ({**RECIPE, "phases": "one"}, "'one' is not a list of texts, config key phases"),
        ({**RECIPE, "phases": ()}, "there are no phases, config key phases"),
    ],
)
def test_a_graph_of_phases_that_cannot_run_is_refused(recipe, said):
    assert any(said in line for line in lines(recipe)), lines(recipe)


def test_what_masks_its_text_is_told_how():
    keys = {"one__masking_rate": "0.5", "one__whole_words": "true"}
    assert not lines(with_phase("one", preset="distilbert"), **keys)
    pretrain = with_phase("one", objective="pretrain", preset="", teacher="")
    assert not lines(pretrain, **keys, one__nsp="true", one__freeze_encoder="true")
    # Whether it is masked cannot be known of terms that cannot be read.
    (line,) = lines(**keys, one__terms__hidden__weight="x")
    assert "config key one.terms.hidden.weight" in line


def test_only_what_pre_trains_its_own_model_needs_no_teacher():
    one = {"objective": "pretrain", "data": "corpus", "trains": "first"}
    recipe = {**RECIPE, "teacher": "", "one": one}
    assert not lines(recipe)
    needs = "there is no teacher, config key teacher; give a model reference"
    assert lines(recipe, one__start="given_teacher") == [needs]
    assert lines(recipe, student__init="teacher") == [needs]
    assert needs in lines(
        recipe, two__objective="distill", two__preset="logits", two__teacher="first"
    )
    assert lines({**recipe, "two": {**recipe["two"], "start": "student"}}, phases="two") == [needs]


def test_phases_can_be_left_out_and_then_have_no_keys_to_set():
    recipe = {**RECIPE, "two": {**RECIPE["two"], "start": "student"}}
    assert list(resolve(recipe, {"phases": "two"}).sections) == ["two"]
    (line,) = lines(recipe, phases="two", one__steps="3")
    assert "phases leaves it out, config key one" in line


def test_every_mistake_is_said_at_once_and_no_consequence_of_one():
    recipe = with_phase("two", start="nobody")
    found = lines(recipe, sede="1", max_length="2", one__trains="", one__steps="x", mesh__data="y")
    assert [line.split("config key ")[1].split(";")[0] for line in found] == [
        "max_length",
        "mesh.data",
        "one.steps",
        "one.trains",
        "sede",
        "two.start",
    ]
    # What trains the model that two starts from cannot be read, so nothing is said of the start.
    assert lines(RECIPE, one__objective="layer", one__trains="first") == [
        "'layer' is out of range, config key one.objective; "
        "give one of 'distill', 'finetune', 'pretrain'"
    ]


@pytest.mark.parametrize("name", ["/a/b", "a/b", "./a", "~/a", "run:a#b", "hf:a/b@c", "gs://a/b"])
def test_a_teacher_with_a_place_is_a_reference_and_a_plain_name_is_a_model(name):
    recipe = with_phase("one", teacher=f"{name} + given_teacher")
    phase = resolve(recipe, {}).sections["one"]
    assert phase.references == (name,) and phase.teachers == (name, "given_teacher")
    (line,) = lines(RECIPE, one__teacher="folder")
    assert line.startswith("no earlier phase trains 'folder', config key one.teacher; give one of")
    assert line.endswith("or a reference (of a folder here, ./NAME)")


def test_teachers_stand_between_pluses_with_blanks_around_them():
    def teachers(text: str) -> tuple[str, ...]:
        return PhaseConfig(teacher=text).teachers

    assert teachers("run:a+b#teacher") == ("run:a+b#teacher",)
    assert teachers("run:a+b#teacher  +  ./c+d + one") == ("run:a+b#teacher", "./c+d", "one")
    assert teachers("") == () and teachers(" one ") == ("one",)
    (line,) = lines(RECIPE, one__teacher="given_teacher+initial_student")
    assert line.endswith("; put blanks around the +")


def test_a_teacher_is_not_blamed_for_terms_that_ask_it_nothing():
    nothing = "nothing is distilled, config key one.terms; give a preset"
    terms = {"x": {"feature": "hidden", "weight": 0.0}}
    (line,) = lines(with_phase("one", preset="", terms=terms))
    assert line.startswith(nothing)
    cls = {"feature": "cls"}
    for terms in ({"loss": cls}, {"x": {"feature": "none"}}, {"x": {**cls, "weight": "a"}}):
        found = lines(with_phase("one", preset="", terms=terms))
        assert len(found) == 1 and "config key one.terms." in found[0], found
    labels = {"feature": "logits", "loss": "labels"}
    assert lines(with_phase("one", preset="", data="task", terms={"hard": labels})) == [
        "the terms need no teacher, config key one.teacher; remove it, or give a term another loss "
        "than labels"
    ]


# --- recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("no, yes", ("no", "yes")),
        ("(no,yes)", ("no", "yes")),
        ("no (really),yes", ("no (really)", "yes")),
        ("", ()),
    ],
)
def test_lists_on_the_command_line_are_items_between_commas(text, labels):
    assert resolve(RECIPE, {"task.labels": text}).task.labels == labels


@pytest.mark.parametrize(
    ("recipe", "one", "two"),
    [
        ("tinybert_general", "full", "paper"),
        ("tinybert_task", "full", "paper"),
        ("bert_pretrain", "frozen", "scratch"),
    ],
)
def test_two_recipes_of_one_file_exclude_each_other(recipe, one, two):
    said = f"{one} and {two} are two recipes, flag --config; give one"
    with pytest.raises(UserError, match=said):
        load_recipe(f"configs/{recipe}.py:{two},{one}")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_resolves_with_every_argument_of_its_docstring(path):
    said = path.read_text(encoding="utf-8").partition("Arguments:")[2]
    words = re.findall(r"^    (\w+)  ", said, re.MULTILINE)
    assert "smoke" in words and len(set(words)) == len(words)
    words.remove("smoke")
    arguments = ["", *words, "smoke", *(f"{word},smoke" for word in words)]
    if "task=" in path.read_text(encoding="utf-8"):
        tasks = ("rotten_tomatoes", "sst2", "cola", "mrpc", "stsb", "qqp", "qnli", "rte", "mnli")
        arguments += [
            f"{a},task={t}".strip(",") for a in ("", "paper", "paper,smoke") for t in tasks
        ]
    seen = []
    for argument in arguments:
        config = resolve(load_recipe(f"{path}:{argument}"), {})
        assert config.sections.keys() == set(config.phases)
        if "smoke" in argument:
            assert all(phase.steps <= 2 for phase in config.sections.values())
        if "paper" in argument:
            assert config.teacher.startswith("hf:google-bert/bert-base-uncased@")
        if "task=" in argument:
            assert config.task.name == argument.partition("task=")[2]
        seen.append(config)
    own = seen[: len(words) + 2]
    assert all(a != b for i, a in enumerate(own) for b in own[:i])


def test_arguments_are_words_and_values():
    assert parse_argument("paper,task=sst2", paper=False, smoke=False, task="x") == {
        "paper": True,
        "smoke": False,
        "task": "sst2",
    }
    with pytest.raises(UserErrors) as error:
        parse_argument("papr,task,smoke=1", paper=False, smoke=False, task="x")
    assert [line.split("'")[1] for line in error.value.lines] == ["papr", "task", "smoke=1"]
    assert all("it knows paper, smoke, task=..." in line for line in error.value.lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(argument):\n    return 1 / 0\n", "does not run: ZeroDivisionError"),
        ("def get_config(argument:\n", "does not run: SyntaxError"),
        ("x = 1\n", "does not run: AttributeError"),
        ("def get_config(argument):\n    return 5\n", "does not run: AttributeError"),
    ],
)
def test_a_recipe_that_does_not_run_is_said_in_one_line(text, said, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        load_recipe(str(path))
    assert str(path) in error.value.line


def test_a_file_that_is_no_recipe_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("text")
    with pytest.raises(UserError, match="is not a Python file"):
        load_recipe(str(tmp_path / "README.md"))
    for path in (tmp_path, tmp_path / "nothing" / "x.py"):
        with pytest.raises(UserError, match="there is no config file"):
            load_recipe(str(path))


# --- the command ---------------------------------------------------------------------------------


def test_the_command_says_every_mistake_and_writes_nothing(tmp_path):
    workdir = tmp_path / "run"
    began = time.monotonic()
    found = commands.refused(
        commands.GENERAL,
        workdir,
        "--config.sede=1",
        "--config.student.num_layer=2",
        "--config.general.steps=0",
        "--config.general.packing=maybe",
        "--config.general.start=nobody",
    )
    assert time.monotonic() - began < 20  # importing jax and the rest alone is several seconds
    assert len(found) == 5 and not workdir.exists()
    assert [line for line in found if "did you mean seed?" in line]
    assert [line for line in found if "no earlier phase trains 'nobody'" in line]


@pytest.mark.parametrize(
    ("config", "flags", "said"),
    [
        ("configs/tinybert_genral.py", (), "did you mean configs/tinybert_general.py?"),
        ("nowhere/recipe.py", (), "give the path of a recipe such as configs/tinybert_general.py"),
        (
            "tinybert_genral",
            (),
            "did you mean tinybert_general? The recipes are bert_finetune, bert",
        ),
        ("reviews:smoke", (), "there is no recipe 'reviews', flag --config; The recipes are"),
        (f"{commands.GENERAL}:papr", (), "does not know the argument 'papr'"),
        (commands.GENERAL, ("--steps=5",), "'--steps=5' is not understood"),
        (commands.GENERAL, ("--config.seed", "5"), "'--config.seed' is not understood"),
    ],
)
def test_what_the_command_line_gets_wrong_is_one_line(config, flags, said, tmp_path):
    found = commands.refused(config, tmp_path / "run", *flags)
    assert any(said in line for line in found)
    assert not (tmp_path / "run").exists()


def test_a_missing_flag_is_said_in_the_same_way():
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=commands.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("jaxbert: error: ")
    assert "--config" in done.stderr and "Traceback" not in done.stderr


def test_jaxbert_alone_says_what_it_can_do(capsys):
    with pytest.raises(SystemExit) as left:
        main([])
    said = capsys.readouterr().out
    assert left.value.code == 2 and all(f"\n    {name} " in said for name in COMMANDS)


def test_debug_shows_where_it_was_raised(tmp_path):
    done = commands.call("train.py", "no.py", tmp_path / "run", "--debug", code=2)
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("jaxbert: error: there is no config file no.py")


def test_a_config_is_refused_before_jax_is_imported(tmp_path):
    flags = [f"--config={commands.GENERAL}", f"--workdir={tmp_path}", "--config.x=1"]
    code = (
        "import sys\n"
        "from jaxbert.cli.main import run_script\n"
        f"try: run_script('train', {flags})\n"
        "except SystemExit as end: print(end.code, sorted({'jax', 'flax'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=commands.ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "2 []\n", done.stderr


@pytest.mark.parametrize("script", ["train", "eval"])
def test_help_imports_nothing_heavy(script):
    words = [sys.executable, "-X", "importtime", f"{script}.py", "--help"]
    done = subprocess.run(words, cwd=commands.ROOT, capture_output=True, text=True, check=True)
    assert f"usage: python {script}.py" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "tensorflow", "transformers"}
    assert "jaxbert.cli" in imported and not heavy & {name.split(".")[0] for name in imported}


# --- no option that nobody reads -----------------------------------------------------------------


def test_every_field_is_read_somewhere():
    read: set[str] = set()
    for path in (commands.ROOT / "jaxbert").rglob("*.py"):
        if path.name in ("config.py", "recipe.py") and path.parent.name == "jaxbert":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    # Those that run.py reads by name, getattr(phase, key), stand there as strings.
    tree = ast.parse((commands.ROOT / "jaxbert" / "run.py").read_text(encoding="utf-8"))
    read |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    for section in SECTIONS:
        unread = {field.name for field in dataclasses.fields(section)} - read
        assert not unread, f"{section.__name__}: nobody reads {unread}"


def test_every_field_is_documented():
    for section in SECTIONS:
        for field in dataclasses.fields(section):
            if field.name != "sections":
                assert field.name in section.__doc__
