"""The loop: stopping anywhere changes nothing, and bad numbers stop it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import STUDENT, examples, visible_params

from jaxbert.batch import Batch
from jaxbert.data.packing import PackedBatches
from jaxbert.data.pipeline import iterate
from jaxbert.errors import UserError
from jaxbert.objectives.finetuning import Finetuning
from jaxbert.objectives.losses import Term
from jaxbert.stopping import resumable
from jaxbert.training import cost, sharding
from jaxbert.training.checkpoint import Checkpoints
from jaxbert.training.hashing import parameter_hash
from jaxbert.training.journal import Journal
from jaxbert.training.loop import Plan, feed, place, train
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.profile import Profile
from jaxbert.training.step import init_state, make_step

OBJECTIVE = Finetuning(STUDENT.replace(hidden_dropout=0.1, attention_dropout=0.1))
OPTIMIZER = make_optimizer(learning_rate=1e-2, steps=12)
BATCHES = PackedBatches(
    examples([9, 3, 12, 5, 7, 2, 4, 8] * 3), batch_size=8, row_length=16, seed=1, multiple=2
)
TIMES = ("seconds", "data_wait", "data_wait_fraction", "saving", "flops_per_second")
PLAN = Plan("task", steps=12, log_every=2, eval_every=4, checkpoint_every=3)


class Interruption(Exception):
    """What a stopped process looks like from inside."""


def fresh_state() -> Any:
    params = visible_params(STUDENT, 1)
    params = {group: params[group] for group in OBJECTIVE.groups}
    return init_state(params, OPTIMIZER, sharding.make_mesh(data=2))


@functools.cache
def compiled_step() -> Any:
    mesh = sharding.make_mesh(data=2)
    return make_step(OBJECTIVE, OPTIMIZER, mesh, fresh_state(), seed=3, phase=1)


def broken_at(stop: int) -> Callable[[int, int], Iterator[Batch]]:
    """Batches until a step that does not come."""

    def batches(first: int, last: int) -> Iterator[Batch]:
        for step, batch in enumerate(iterate(BATCHES, first, last), first):
            if step == stop:
                raise Interruption
            yield batch

    return batches


def run(
    workdir: Path,
    batches: Any = None,
    *,
    plan: Plan = PLAN,
    evaluate: Any = None,
    step: Any = None,
    state: Any = None,
    examples: Callable[[int], str] = str,
    profile: Profile | None = None,
    begun: Callable[[], object] = lambda: None,
) -> Any:
    """The real loop, from whatever the folder holds."""
    checkpoints, journal = Checkpoints(workdir / "checkpoints"), Journal(workdir)
    try:
        return train(
            plan,
            step or compiled_step(),
            state or fresh_state(),
            {},
            batches or (lambda first, last: iterate(BATCHES, first, last)),
            sharding.rows(sharding.make_mesh(data=2)),
            checkpoints,
            journal,
            evaluate,
            examples,
            profile=profile,
            begun=begun,
        )
    finally:
        checkpoints.close()
        journal.close()


def timed(workdir: Path) -> list[dict[str, Any]]:
    """Entries as they are, without those of evaluations."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if "dev" not in entry]


def journal_of(workdir: Path, *, dev: bool = False) -> list[dict[str, Any]]:
    """Entries without times, of the steps or of the evaluations."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [entry for entry in map(json.loads, lines) if ("dev" in entry) == dev]
    return [{k: v for k, v in entry.items() if k not in TIMES} for entry in entries]


def first_bias(params: Any) -> float:
    """A stand-in metric that moves with training."""
    return -float(np.asarray(params["classifier"]["dense"]["bias"])[0])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, run(workdir, evaluate=first_bias)


@pytest.mark.parametrize("stops", [(1,), (3,), (5, 10), (4, 8, 11)])
def test_stopping_anywhere_gives_the_bits_of_never_having_stopped(stops, unbroken, tmp_path):
    wanted_dir, (wanted, wanted_totals, wanted_values) = unbroken
    for stop in stops:
        with pytest.raises(Interruption):
            run(tmp_path, broken_at(stop), evaluate=first_bias)
    state, totals, values = run(tmp_path, evaluate=first_bias)
    assert parameter_hash(state) == parameter_hash(wanted)
    assert values == wanted_values
    assert (totals.tokens, totals.real_tokens) == (wanted_totals.tokens, wanted_totals.real_tokens)
    assert journal_of(tmp_path) == journal_of(wanted_dir)
    assert journal_of(tmp_path, dev=True) == journal_of(wanted_dir, dev=True)


@pytest.mark.parametrize("at", [1, 6, 7])
def test_told_to_stop_it_saves_within_the_step_and_goes_on_to_the_same_bits(at, unbroken, tmp_path):
    wanted_dir, (wanted, wanted_totals, wanted_values) = unbroken

    def told(first: int, last: int) -> Iterator[Batch]:
        for step, batch in enumerate(iterate(BATCHES, first, last), first):
            if step == at:  # while the step before it is under way
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    # In the first step, which may have to be compiled, nothing is saved.
    with pytest.raises(SystemExit) as caught, resumable():
        run(tmp_path, told, evaluate=first_bias)
    assert caught.value.code == 75
    assert checkpoints_in(tmp_path)[-1:] == ([] if at == 1 else [str(at)])
    state, totals, values = run(tmp_path, evaluate=first_bias)
    assert parameter_hash(state) == parameter_hash(wanted)
    assert (totals.real_tokens, values) == (wanted_totals.real_tokens, wanted_values)
    assert journal_of(tmp_path) == journal_of(wanted_dir)
    assert journal_of(tmp_path, dev=True) == journal_of(wanted_dir, dev=True)


def test_a_traced_phase_has_the_bits_of_one_that_is_not(unbroken, tmp_path, capsys):
    wanted_dir, (wanted, _, wanted_values) = unbroken
    profile = Profile(tmp_path / "profile")
    state, _, values = run(tmp_path, evaluate=first_bias, profile=profile)
    assert parameter_hash(state) == parameter_hash(wanted) and values == wanted_values
    assert journal_of(tmp_path) == journal_of(wanted_dir)
    assert profile.steps == 1  # it ends before the checkpoint of step 3 is written
    assert "1 steps under the profiler" in capsys.readouterr().out


def broken_off(at: int, how: Callable[[], Any]) -> Callable[[Any], float]:
    """An evaluation that is broken off, at one of its calls."""
    calls = itertools.count(1)

    def evaluate(params: Any) -> float:
        if next(calls) == at:
            how()
        return first_bias(params)

    return evaluate


def interrupt() -> None:
    raise Interruption


@pytest.mark.parametrize("how", ["killed", "told"])
@pytest.mark.parametrize("at", [1, 3])
def test_a_step_whose_evaluation_is_broken_off_is_saved_and_evaluated_later(
    how, at, unbroken, tmp_path
):
    wanted_dir, (wanted, wanted_totals, wanted_values) = unbroken
    stop = interrupt if how == "killed" else lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interruption if how == "killed" else SystemExit) as caught, resumable():
        run(tmp_path, evaluate=broken_off(at, stop))
    assert how == "killed" or caught.value.code == 75
    step = 4 * at
    assert str(step) in checkpoints_in(tmp_path)
    assert [e["step"] for e in journal_of(tmp_path, dev=True)] == list(range(4, step, 4))
    state, totals, values = run(tmp_path, evaluate=first_bias)
    assert parameter_hash(state) == parameter_hash(wanted)
    assert (totals.real_tokens, values) == (wanted_totals.real_tokens, wanted_values)
    assert journal_of(tmp_path) == journal_of(wanted_dir)
    assert journal_of(tmp_path, dev=True) == journal_of(wanted_dir, dev=True)


@pytest.mark.parametrize("lost", ["nothing", "the line", "the judgement"])
def test_an_evaluation_is_in_the_journal_once_whatever_was_written_of_it(lost, unbroken, tmp_path):
    wanted_dir, _ = unbroken
    with pytest.raises(Interruption):
        run(tmp_path, broken_at(5), evaluate=first_bias)
    path = tmp_path / "metrics.jsonl"
    if lost == "the line":
        lines = path.read_text().splitlines(keepends=True)
        assert '"dev"' in lines[-1]
        path.write_text("".join(lines[:-1]))
    if lost == "the judgement":
        (tmp_path / "checkpoints" / "4" / "record" / "judgement").unlink()
    run(tmp_path, evaluate=first_bias)
    assert journal_of(tmp_path) == journal_of(wanted_dir)
    assert journal_of(tmp_path, dev=True) == journal_of(wanted_dir, dev=True)


def test_journal_has_each_logged_step_once_with_what_scripts_read(unbroken):
    workdir, (_, totals, _) = unbroken
    entries = journal_of(workdir)
    # Every second step, and before each checkpoint.
    assert [e["step"] for e in entries] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert {"phase", "step", "tokens", "real_tokens", "loss", "cross_entropy"} <= set(entries[0])
    assert [e["step"] for e in journal_of(workdir, dev=True)] == [4, 8, 12]
    real = sum(int((BATCHES[s].segments > 0).sum()) for s in range(12))
    assert entries[-1]["real_tokens"] == totals.real_tokens == real
    assert totals.tokens == 12 * BATCHES[0].tokens.size
    # Over several steps, a term is the mean over examples and the loss that over steps.
    single = [e for e in entries if e["step"] in (3, 9)]
    assert all(e["loss"] == pytest.approx(e["cross_entropy"], rel=1e-5) for e in single)
    assert all(0 <= e["data_wait"] <= e["seconds"] for e in timed(workdir))


@pytest.mark.parametrize("peak", [None, 1e9])
def test_what_the_devices_do_is_said_and_held_against_their_peak_where_that_is_known(
    peak, tmp_path, monkeypatch, capsys
):
    if peak:
        monkeypatch.setitem(cost.PEAKS, "cpu", peak)
    _, totals, _ = run(tmp_path)
    entries = timed(tmp_path)
    assert entries[-1]["flops"] == totals.flops > 0
    for before, after in itertools.pairwise(entries):
        steps = after["step"] - before["step"]
        assert after["flops"] - before["flops"] == steps * totals.flops // PLAN.steps
        assert after["flops_per_second"] > 0
        assert after.get("mfu") == (after["flops_per_second"] / (2 * peak) if peak else None)
    said = capsys.readouterr().out
    assert " TFLOP/s" in said and ("MFU" in said) == bool(peak)


def test_what_the_step_waits_for_data_is_written_and_added_up(unbroken, tmp_path):
    pause, asked, begun = 0.02, list[int](), list[int]()

    def slow(first: int, last: int) -> Iterator[Batch]:
        for step in range(first, last):
            asked.append(step)
            time.sleep(pause)
            yield BATCHES[step]

    with pytest.raises(Interruption):
        run(tmp_path, broken_at(7))
    _, totals, _ = run(tmp_path, slow, begun=lambda: begun.append(asked[-1]))
    assert begun == [7], "once in a process: step 6 is made, the batch of the next is here"
    entries = timed(tmp_path)
    by_step = {entry["step"]: entry for entry in entries}
    assert by_step[12]["data_wait"] - by_step[6]["data_wait"] >= 6 * pause  # a sleep is never short
    assert totals.data_wait == by_step[12]["data_wait"] <= totals.seconds
    assert totals.data_wait_fraction == totals.data_wait / totals.seconds
    for before, after in itertools.pairwise(entries):
        used = after["data_wait"] - before["data_wait"]
        assert 0 < after["data_wait_fraction"] < 1
        assert after["data_wait_fraction"] * (after["seconds"] - before["seconds"]) >= 0.99 * used


def test_next_batch_is_on_the_devices_before_a_step_begins():
    made = []

    def batches() -> Iterator[Batch]:
        for step in range(4):
            made.append(step)
            yield BATCHES[step]

    rows = sharding.rows(sharding.make_mesh(data=2))
    for step, (batch, placed, waited) in enumerate(feed(batches(), rows)):
        assert made == list(range(min(step + 2, 4)))
        assert waited >= 0
        for host, device in zip(jax.tree.leaves(batch), jax.tree.leaves(placed), strict=True):
            assert isinstance(host, np.ndarray) and device.sharding == rows
            np.testing.assert_array_equal(device, host)
    assert step == 3
    assert list(feed([], rows)) == []


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_rows_of_any_number_of_processes_make_the_same_global_batch(processes):
    """A process puts its rows of the global batch on its own devices, and no others."""
    rows = sharding.rows(sharding.make_mesh(data=processes))
    stream = PackedBatches(
        examples([9, 3, 12, 5, 7, 2, 4, 8] * 3),
        batch_size=8,
        row_length=16,
        seed=1,
        multiple=processes,
    )
    alone = PackedBatches(stream.source, batch_size=8, row_length=16, seed=1)
    for step in (0, 1, 5, 10**6):
        placed = place(stream[step], rows)
        for mine, whole in zip(jax.tree.leaves(placed), jax.tree.leaves(alone[step]), strict=True):
            shards = sorted(mine.addressable_shards, key=lambda shard: shard.index[0].start or 0)
            assert len(shards) == processes
            joined = np.concatenate([np.asarray(shard.data) for shard in shards])
            np.testing.assert_array_equal(joined[: len(whole)], whole)
            assert not joined[len(whole) :].any()


def test_finished_phase_trains_no_further(unbroken):
    workdir, (wanted, _, _) = unbroken
    before = (workdir / "metrics.jsonl").read_bytes()

    def nothing(first: int, last: int) -> Iterator[Batch]:
        assert first == last
        return iter(())

    state, _, _ = run(workdir, nothing, evaluate=first_bias)
    assert parameter_hash(state) == parameter_hash(wanted)
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("metrics", "best"), [([0.1, 0.9, 0.5], 8), ([0.9, 0.9, 0.5], 8), ([0.9, 0.1, 0.9], 12)]
)
def test_best_step_is_returned_and_the_later_of_equals(metrics, best, tmp_path):
    turns = iter(metrics)
    state, _, _ = run(tmp_path, evaluate=lambda params: next(turns))
    assert int(state.step) == best
    plain, _, _ = run(tmp_path / "plain", plan=Plan("task", best, log_every=5))
    assert parameter_hash(state) == parameter_hash(plain)


def test_without_evaluation_the_last_step_is_returned(tmp_path):
    state, totals, values = run(tmp_path, plan=Plan("task", 5, log_every=2))
    assert int(state.step) == 5
    assert [e["step"] for e in journal_of(tmp_path)] == [2, 4, 5]
    assert values["loss"] > 0
    assert totals.seconds > 0


def test_undefined_metric_is_written_as_null_and_chooses_nothing(tmp_path):
    state, _, _ = run(tmp_path, evaluate=lambda params: None)
    assert int(state.step) == PLAN.steps
    assert [(e["step"], e["dev"]) for e in journal_of(tmp_path, dev=True)] == [
        (4, None),
        (8, None),
        (12, None),
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("start", "the model that it starts from"),
        ("teacher", "its teacher"),
        ("data", "what it learns from"),
    ],
)
def test_checkpoint_of_other_models_or_data_is_refused_and_kept(changed, said, tmp_path):
    sources = {"start": "abc", "teacher": "def", "data": "ghi"}
    plan = Plan("task", 4, log_every=2, checkpoint_every=2, sources=sources)
    with pytest.raises(Interruption):
        run(tmp_path, broken_at(3), plan=plan)
    other = dataclasses.replace(plan, sources=sources | {changed: "xyz"})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(
        UserError, match=rf"^{said} has changed.*is now xyz\), phase task; put the old"
    ):
        run(tmp_path, plan=other)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert int(run(tmp_path, plan=plan)[0].step) == 4


def checkpoints_in(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_loss_that_is_never_finite_stops_the_phase_and_is_never_saved(tmp_path):
    """Infinite weights: inf - inf in the softmax."""
    state = fresh_state()
    dense = state.params["classifier"]["dense"]
    dense["kernel"] = dense["kernel"] * np.float32(np.inf)
    with pytest.raises(UserError, match=r"cross_entropy.* are not finite, phase task, step 1, 1; "):
        run(tmp_path, state=state)
    assert checkpoints_in(tmp_path) == []


@dataclasses.dataclass(frozen=True)
class Root:
    """sqrt(w), whose gradient at 0 is infinite."""

    groups = ("w",)

    def weights(self, step: Any) -> dict[str, float]:
        return {"root": 1.0}

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: Any) -> dict[str, Term]:
        return {"root": Term(jnp.sqrt(params["w"]), jnp.float32(1.0))}


def test_gradient_that_overflows_under_a_finite_loss_stops_the_phase(tmp_path):
    """Its parameters are spoilt, and must not become the newest checkpoint."""
    mesh = sharding.make_mesh(data=2)
    state = init_state({"w": np.float32(0.0)}, OPTIMIZER, mesh)
    step = make_step(Root(), OPTIMIZER, mesh, state, seed=0, phase=0)
    plan = Plan("task", steps=2, log_every=1, checkpoint_every=1)
    with pytest.raises(UserError, match=r"^gradient_norm is not finite, phase task, step 1, 1; "):
        run(tmp_path, plan=plan, step=step, state=state)
    assert checkpoints_in(tmp_path) == []


def test_the_host_asks_for_no_number_of_a_step_before_it_logs(tmp_path):
    """It would wait for the devices: metrics are numbers here that say when they are read.

    What it waits for is the first step, which is timed, and then the step before, when the next
    one is begun.
    """
    mesh = sharding.make_mesh(data=2)
    state = init_state({"w": np.float32(1.0)}, OPTIMIZER, mesh)
    real = make_step(Root(), OPTIMIZER, mesh, state, seed=0, phase=0)
    made, asked, waited = 0, set(), set()

    @dataclasses.dataclass(frozen=True)
    class Number:
        step: int

        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            asked.add((self.step, made))
            return np.ones((), np.float32)

        def __float__(self) -> float:
            return float(self.__array__())

        def block_until_ready(self) -> Any:
            waited.add((self.step, made))
            return self

    def step(*given: Any) -> Any:
        nonlocal made
        state, metrics = real(*given)
        made += 1
        return state, jax.tree.map(lambda x: Number(made), metrics)

    step.trace = real.trace
    run(tmp_path, plan=Plan("task", 9, log_every=4), step=step, state=state)
    logged = {s: min(-(-s // 4) * 4, 9) for s in range(1, 10)}
    assert asked == set(logged.items())
    assert waited == {(1, 1), *((step, step + 1) for step in range(1, 9))}


@dataclasses.dataclass(frozen=True)
class Slow:
    """w^2, with products beside it that take a while."""

    groups = ("w",)

    def weights(self, step: Any) -> dict[str, float]:
        return {"square": 1.0}

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: Any) -> dict[str, Term]:
        x = jnp.full((256, 256), jax.lax.stop_gradient(params["w"]))
        x = jax.lax.fori_loop(0, 60, lambda _, x: jnp.tanh(x @ x), x)
        return {"square": Term(jnp.square(params["w"]) + 0 * x.sum(), jnp.float32(1.0))}


def test_one_step_at_most_is_under_way_when_the_next_is_begun(tmp_path):
    """A stop waits for these; and the devices have something to do while the host begins it."""
    mesh = sharding.make_mesh(data=2)
    state = init_state({"w": np.float32(1.0)}, OPTIMIZER, mesh)
    real = make_step(Slow(), OPTIMIZER, mesh, state, seed=0, phase=0)
    begun: list[jax.Array] = []
    under_way = []

    def step(*given: Any) -> Any:
        under_way.append(sum(not loss.is_ready() for loss in begun))
        state, metrics = real(*given)
        begun.append(metrics["loss"].total)
        return state, metrics

    step.trace = real.trace
    run(tmp_path, plan=Plan("task", 6, log_every=100), step=step, state=state)
    assert len(under_way) == 6 and max(under_way) == 1, under_way


@dataclasses.dataclass(frozen=True)
class Poisoned:
    """w^2, and nothing that is a number where a batch's first token is 63."""

    groups = ("w",)

    def weights(self, step: Any) -> dict[str, float]:
        return {"square": 1.0}

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: Any) -> dict[str, Term]:
        poison = jnp.where(batch.tokens[0, 0] == 63, jnp.nan, 1.0)
        return {"square": Term(poison * jnp.square(params["w"]), jnp.float32(1.0))}


def poisoned(bad: set[int], folder: Path, **plan: Any) -> tuple[Any, Any, Any]:
    """Twelve steps, some of them bad, counted from 1."""

    def batches(first: int, last: int) -> Iterator[Batch]:
        for step in range(first, last):
            tokens = np.full_like(BATCHES[0].tokens, 63 if step + 1 in bad else 0)
            yield dataclasses.replace(BATCHES[0], tokens=tokens)

    mesh = sharding.make_mesh(data=2)
    state = init_state({"w": np.float32(1.0)}, OPTIMIZER, mesh)
    step = make_step(Poisoned(), OPTIMIZER, mesh, state, seed=0, phase=0)
    plan = dataclasses.replace(Plan("task", 12, log_every=4, checkpoint_every=4), **plan)
    examples = "examples of step {}".format
    return run(folder, batches, plan=plan, step=step, state=state, examples=examples)


def test_bad_steps_are_skipped_counted_and_change_nothing(tmp_path):
    state, totals, values = poisoned({5, 6}, tmp_path, max_bad_steps=2)
    good, _, _ = poisoned(set(), tmp_path / "good", steps=10, checkpoint_every=10)
    assert parameter_hash(state.params) == parameter_hash(good.params)
    assert parameter_hash(state.opt_state) == parameter_hash(good.opt_state)
    assert int(state.step) == 12 and totals.bad_steps == 2 and np.isfinite(values["loss"])
    lines = commands.metrics(tmp_path)
    assert [line["bad_steps"] for line in lines] == [0, 2, 2]
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_one_bad_step_too_many_names_step_term_and_examples_and_spoils_nothing(tmp_path):
    with pytest.raises(UserError) as caught:
        poisoned({5, 6, 7}, tmp_path, max_bad_steps=2)
    wanted = "gradient_norm, loss, square are not finite (bad step 3 of this phase), phase task, "
    assert caught.value.line.startswith(wanted + "step 7, examples of step 7; ")
    assert checkpoints_in(tmp_path) == ["4"]


def test_a_loss_that_jumps_is_said_and_logged_where_that_is_asked_for(tmp_path, capsys):
    """w grows under a gradient of the wrong sign; its square is large beside what it was."""
    run(tmp_path, plan=Plan("task", 12, log_every=4, spike_factor=1e-9))
    lines = [line for line in commands.metrics(tmp_path) if "spike" in line]
    assert [line["step"] for line in lines] == [11, 12]  # the first ten are what it is held against
    assert "task 11/12 · loss " in capsys.readouterr().out


def test_all_of_this_is_one_program(unbroken):
    """Fresh, restored and placed states and batches compile once."""
    assert compiled_step()._cache_size() == 1


@pytest.mark.parametrize(("metrics", "best"), [((-0.2, -0.9, None), 4), ((None, -1, -1), 12)])
def test_a_metric_below_nought_is_the_best_where_there_is_no_better(metrics, best, tmp_path):
    """As Matthews' and other correlations are: best starts below any possible score."""
    turns = iter(metrics)
    state, _, _ = run(tmp_path, evaluate=lambda params: next(turns))
    assert int(state.step) == best


@pytest.mark.parametrize(("select", "step"), [("best", 8), ("last", 12)])
def test_best_and_last_are_both_kept_whichever_is_selected(select, step, tmp_path):
    turns = iter([0.1, 0.9, 0.5])
    plan = dataclasses.replace(PLAN, select=select)
    with pytest.raises(Interruption):
        run(tmp_path, broken_at(10), plan=plan, evaluate=lambda params: next(turns))
    state, _, _ = run(tmp_path, plan=plan, evaluate=lambda params: next(turns))
    assert int(state.step) == step
    assert checkpoints_in(tmp_path) == ["12", "8", "9"]
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.development() == {"best_step": 8, "best_dev": 0.9, "last_dev": 0.5}
    checkpoints.close()
