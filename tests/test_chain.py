"""Teacher, assistant, student: one run, in which each learns from the one before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import commands
import numpy as np
import pytest

from jaxbert.errors import UserError
from jaxbert.interop.huggingface import read_model
from jaxbert.library import Library
from jaxbert.recipe import load_recipe, resolve
from jaxbert.run import run
from jaxbert.training.hashing import parameter_hash

SIZES = {  # teacher 48 wide with 3 layers -> assistant 36 with 1 -> student 24 with 1
    "assistant.hidden_size": "36",
    "assistant.intermediate_size": "72",
    "assistant.num_layers": "1",
    "assistant.init_layers": "bottom",
    "student.hidden_size": "24",
    "student.intermediate_size": "48",
    "student.num_layers": "1",
    "student.init_layers": "2",
    "student.projection": "layer",
    "student.projection_rank": "4",
}


def config(root: Path, more: Mapping[str, Any], **overrides: str) -> Any:
    """The recipe of a chain, small; a double underscore stands for a dot."""
    recipe = load_recipe(f"{commands.GENERAL}:assistant,smoke") | dict(more)
    given = {"teacher": f"{root}/teacher", "corpus": f"text:{root}/*.txt", "dtype": "float32"}
    given |= {"max_length": "32", "mesh.data": "1", "corpus_cache": f"{root}/cache"} | SIZES
    return resolve(recipe, given | {k.replace("__", "."): v for k, v in overrides.items()})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("chain")
    commands.write_small_teacher(root / "teacher")
    text = "\n\n".join(f"The film number {i} is long. So is the night." for i in range(30))
    (root / "corpus.txt").write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def chain(root) -> SimpleNamespace:
    """The run, and a last phase in which the student goes on with the given teacher."""
    recipe = load_recipe(f"{commands.GENERAL}:assistant,smoke")
    more = dict(recipe["general"], trains="more", start="student", teacher="given_teacher")
    phases = ("general_assistant", "general", "more")
    made = config(root, {"more": more, "phases": phases})
    summary = run(made, root / "run")
    models = {path.name: read_model(path) for path in (root / "run" / "models").iterdir()}
    return SimpleNamespace(config=made, summary=summary, models=models, root=root)


@pytest.mark.slow
def test_each_learns_from_the_one_before(chain):
    phases, models = chain.summary["phases"], chain.models
    hashes = {name: parameter_hash(model.params) for name, model in models.items()}
    given = parameter_hash(read_model(chain.root / "teacher").params)
    first, second, last = (phases[name] for name in chain.config.phases)
    assert (first["teacher_hash"], first["start_hash"]) == (given, hashes["initial_assistant"])
    assert second["teacher_hash"] == first["parameter_hash"] == hashes["assistant"]
    assert second["start_hash"] == hashes["initial_student"]
    assert (last["teacher_hash"], last["model"]) == (given, "more")
    assert chain.summary["parameter_hash"] == hashes["student"]
    assert all(np.isfinite(phase["final"]["loss"]) for phase in phases.values())


@pytest.mark.slow
def test_shapes_follow_the_section_and_projections_the_teacher_of_the_phase(chain):
    models = chain.models
    for name in ("initial_assistant", "assistant"):
        shape = models[name].config
        assert (shape.hidden_size, shape.num_layers, shape.projection_size) == (36, 1, 48)
        assert models[name].params["projection"]["kernel"].shape == (36, 48)
    for name, width in (("initial_student", 36), ("student", 36), ("more", 48)):
        shape = models[name].config
        assert (shape.hidden_size, shape.num_layers, shape.projection_size) == (24, 1, width)
        assert models[name].params["projection"]["down_kernel"].shape == (2, 24, 4)
        assert models[name].params["projection"]["up_kernel"].shape == (2, 4, width)


@pytest.mark.slow
def test_layers_are_cut_out_of_those_that_are_named(chain):
    given = read_model(chain.root / "teacher").params["encoder"]["layers"]["attention"]
    for name, layers in (("assistant", (0,)), ("student", (1,))):
        model = chain.models[f"initial_{name}"]
        mine = model.params["encoder"]["layers"]["attention"]["output"]["kernel"]
        for cut, layer in zip(mine, layers, strict=True):
            assert np.isin(cut, given["output"]["kernel"][layer]).all()


@pytest.mark.slow
def test_a_map_back_is_to_the_given_teacher_alone(chain):
    back = chain.models["initial_assistant"].params["projection"]["kernel"]
    assert set(np.unique(back)) == {0, 1} and back.sum() == 36
    # The assistant's coordinates are not the given teacher's.
    fresh = chain.models["initial_student"].params["projection"]["down_kernel"]
    assert not np.isin(fresh, (0, 1)).any()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"assistant__preset": ""}, "no earlier phase trains 'initial_assistant', config key"),
        ({"general__teacher": "asistant"}, "no earlier phase trains 'asistant', config key"),
        ({"phases": "general", "general__teacher": "given_teacher"}, "no phase starts from the"),
        ({"general__trains": "random_assistant"}, "'random_assistant' cannot name a trained"),
        ({"student__preset": ""}, "the student has no shape, config key student.preset"),
        ({"student__init": "random"}, "cut out of no layers, config key student.init_layers"),
        ({"student__projection": "none"}, "could have a rank, config key student.projection_rank"),
        ({"assistant__init_layers": "last"}, "'last' names no layers, config key assistant.init_"),
    ],
)
def test_what_cannot_be_a_chain_is_said(root, overrides, said):
    with pytest.raises(UserError) as error:
        config(root, {}, **overrides)
    assert any(said in line for line in error.value.lines), error.value.lines


def test_shapes_that_do_not_fit_are_said_before_anything_is_written(root, tmp_path):
    wrong = {"assistant__projection": "none", "assistant__init_layers": "4"}
    wrong |= {"student__projection_rank": "25"}
    with pytest.raises(UserError) as error:
        run(config(root, {}, **wrong), tmp_path / "run")
    for said in (
        "teacher layer 4 does not exist, config key assistant.init_layers; give 1 to 3",
        "are 36 wide and its teacher's 48, phase general_assistant",
        "projection_rank = 25 is not valid, the model's configuration; give 0 (a full matrix) or "
        "at most the narrower width, 24",
    ):
        assert any(said in line for line in error.value.lines), error.value.lines
    assert not (tmp_path / "run").exists()


def test_an_assistant_can_be_as_wide_as_its_student_and_need_no_projection(root, tmp_path):
    equal = {"student__projection": "none", "student__projection_rank": "0"}
    library = Library(config(root, {}, **equal, student__hidden_size="36"), tmp_path)
    assert library.shapes.of("student").projection_size == 0
    assert library.shapes.of("assistant").projection_size == 48
