"""A workdir goes on with the run that claimed it, and with no other."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import sys

import commands
import pytest

import jaxbert
from jaxbert.errors import UserError
from jaxbert.files import SEAL, check_seal, seal
from jaxbert.recipe import load_recipe, resolve
from jaxbert.workdir import (
    SEALED,
    check_claim,
    claim,
    decisive,
    instruction_sets,
    processor,
    requirements,
    versions,
    write_json,
)

FREE = {
    "log_every",
    "tracking",
    "max_bad_steps",
    "spike_factor",
    "eval_batch_size",
    "data_dir",
    "data_workers",
    "corpus_cache",
    "mesh.data",
    "mesh.model",
    "mesh.fsdp",
}


def small_config(**overrides):
    return resolve(load_recipe(f"{commands.TASK}:smoke"), overrides)


def flat(node, prefix=""):
    """Dotted key -> value."""
    if not isinstance(node, dict):
        return {prefix.rstrip("."): node}
    return {k: v for key, child in node.items() for k, v in flat(child, f"{prefix}{key}.").items()}


def test_the_same_config_may_go_on_and_a_new_folder_may_begin(tmp_path):
    check_claim(tmp_path / "run", small_config())
    with claim(tmp_path / "run", small_config()):
        pass
    check_claim(tmp_path / "run", small_config())


def test_every_key_that_changes_what_is_computed_is_refused_and_no_other(tmp_path):
    """Each key in turn, as another value in config.json."""
    config = small_config()
    with claim(tmp_path, config):
        pass
    path, free = tmp_path / "config.json", set()
    for key in flat(config.to_dict()):
        content = config.to_dict()
        node = content
        *sections, name = key.split(".")
        for section in sections:
            node = node[section]
        node[name] = "another value"
        write_json(path, content)
        try:
            check_claim(tmp_path, config)
            free.add(key)
        except UserError as error:
            (line,) = error.lines
            assert "was 'another value' when this run began" in line
            assert f"config key {key} (" in line
    assert free == FREE | {f"{phase}.checkpoint_every" for phase in config.phases}


def test_a_run_that_began_before_there_was_a_key_goes_on_with_its_default(tmp_path):
    config = small_config()
    with claim(tmp_path, config):
        pass
    content = config.to_dict()
    phase = config.phases[0]
    del content["teacher_dtype"], content["mesh"], content[phase]["teacher_cache"]
    write_json(tmp_path / "config.json", content)
    check_claim(tmp_path, config)
    with pytest.raises(UserError, match="is 'int8' and was '' when this run began"):
        check_claim(tmp_path, small_config(teacher_dtype="int8"))
    with pytest.raises(UserError, match=f"was 'auto' when this run began, config key {phase}"):
        check_claim(tmp_path, small_config(**{f"{phase}.teacher_cache": "none"}))


def test_more_lines_of_metrics_may_be_asked_for_and_another_seed_may_not(tmp_path):
    with claim(tmp_path, small_config()):
        pass
    check_claim(tmp_path, small_config(log_every="7"))
    with pytest.raises(UserError, match="it is 5 and was 0 when this run began, config key seed"):
        check_claim(tmp_path, small_config(seed="5", log_every="7"))


def test_a_file_of_the_user_s_beside_it_is_left_alone(tmp_path):
    """copies.jsonl.json is written beside copies.jsonl, and that may be a name of the user's."""
    theirs = [tmp_path / name for name in ("a.partial", "a.json.partial", "a.jsonl.partial")]
    for path in theirs:
        path.write_text("mine")
    for name in ("a.json", "a.jsonl.json"):
        write_json(tmp_path / name, {"one": 1})
        assert commands.read(tmp_path / name) == {"one": 1}
    assert {path.read_text() for path in theirs} == {"mine"}


def test_a_second_run_in_the_folder_names_the_process_of_the_first(tmp_path):
    with claim(tmp_path, small_config()):
        said = f"^the process {os.getpid()} trains there, {tmp_path}; wait for it"
        with pytest.raises(UserError, match=said), claim(tmp_path, small_config()):
            pass
    with claim(tmp_path, small_config()):  # it is free again
        pass


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    (tmp_path / ".metrics.jsonl.0123.partial").write_text("half")
    with claim(tmp_path, small_config()):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json"]


def test_a_run_that_is_begun_again_is_not_finished_rather_than_damaged(tmp_path):
    """config.json is written anew, with what may change."""
    with claim(tmp_path, small_config()):
        write_json(tmp_path / "summary.json", {})
        seal(tmp_path, SEALED)
    check_seal(tmp_path, "")
    with claim(tmp_path, small_config(log_every="7")):
        pass
    check_seal(tmp_path, "")
    assert not (tmp_path / SEAL).exists()


def test_files_that_others_are_writing_beside_the_run_stay(tmp_path):
    (tmp_path / ".eval.json.0123.partial").write_text("half")
    with claim(tmp_path, small_config()):
        assert (tmp_path / ".eval.json.0123.partial").exists()


def test_a_checkout_that_is_not_installed_has_versions_too(monkeypatch):
    def installed(name, known=importlib.metadata.version):
        if name == "jaxbert":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", installed)
    found = versions()
    assert found["jaxbert"] == jaxbert.__version__
    assert found["jax"] == installed("jax")


def test_the_records_have_the_version_of_all_that_the_code_imports():
    """Every import has its distribution among the requirements, and those are what is recorded."""
    trees = [
        ast.parse(path.read_text("utf-8"))
        for path in (commands.ROOT / "jaxbert").rglob("*")
        if path.suffix == ".py"
    ]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    tops = {name.partition(".")[0] for name in named} - sys.stdlib_module_names - {"jaxbert"}
    owners, known = importlib.metadata.packages_distributions(), requirements()
    spelt = {plain(name) for name in known}
    assert {"jax", "numpy", "orbax", "google", "sklearn"} <= tops
    assert not [t for t in tops if not {plain(o) for o in owners.get(t, [t])} & spelt]
    found = versions()
    always = {name for name, optional in known.items() if not optional}
    assert {"python", "jaxbert", *always} <= found.keys()
    assert {"jaxlib", "grain", "orbax-checkpoint", "optax", "flax", "tokenizers"} <= always
    assert all(found[name] == importlib.metadata.version(name) for name in always)
    assert "pytest" in found and "wandb" not in found  # only what this process has imported


def plain(name: str) -> str:
    """A distribution's name as an index compares it."""
    return name.lower().replace("_", "-")


def test_an_installed_package_requires_what_its_checkout_does(tmp_path, monkeypatch):
    of_checkout = requirements()
    about = (
        "Metadata-Version: 2.1\nName: jaxbert\nVersion: 0\n"
        "Requires-Dist: jax<0.13,>=0.10\nRequires-Dist: grain\n"
        'Requires-Dist: jax[cuda13]; extra == "cuda"\nRequires-Dist: jieba==0.42.1; extra == "x"\n'
    )
    (tmp_path / "jaxbert-0.dist-info").mkdir()
    (tmp_path / "jaxbert-0.dist-info" / "METADATA").write_text(about)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(jaxbert, "__file__", str(tmp_path / "jaxbert" / "__init__.py"))
    found = requirements()
    assert found == {"jax": False, "grain": False, "jieba": True}
    assert found.items() <= of_checkout.items()


def test_the_processor_says_what_it_can(monkeypatch, tmp_path):
    there = tmp_path / "cpuinfo"
    there.write_text("processor\t: 0\nmodel name\t: A: one\nflags\t\t: fpu avx2\n\nflags\t: x\n")
    monkeypatch.setattr("jaxbert.workdir._CPUINFO", there)
    assert (processor(), instruction_sets()) == ("A: one", {"fpu", "avx2"})
    there.unlink()
    assert processor() and instruction_sets() == frozenset()


def test_a_dtype_that_is_left_to_the_devices_says_nothing():
    assert "dtype" not in decisive(small_config().to_dict())
    assert decisive(small_config(dtype="float32").to_dict())["dtype"] == "float32"
