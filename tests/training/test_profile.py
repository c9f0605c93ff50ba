"""Traces of steps: what is read of them, and that tracing changes nothing."""

from __future__ import annotations

import re

import commands
import jax
import jax.numpy as jnp
import pytest

from jaxbert.training.profile import (
    STEPS,
    Profile,
    _kind,
    _name,
    _of_library,
    _own_times,
    operation_times,
)


def test_what_an_event_holds_is_not_its_own_time():
    events = [(0, 10, "while"), (1, 4, "a"), (2, 3, "b"), (5, 9, "a"), (20, 21, "b")]
    found = {}
    for name, own in _own_times(events):
        found[name] = found.get(name, 0) + own
    assert found == {"while": 3, "a": 6, "b": 2}
    assert list(_own_times([])) == []


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ({"fusion", "dot", "add", "reduce"}, "products"),
        ({"custom-call", "__cublas$gemm"}, "products"),
        ({"fusion", "reduce", "multiply"}, "reductions"),
        ({"all-reduce", "add"}, "exchange between devices"),
        ({"fusion", "multiply", "convert"}, "element by element"),
        ({"fusion", "transpose", "bitcast"}, "copies, casts and transpositions"),
    ],
)
def test_a_fusion_is_named_by_the_dearest_that_is_in_it(names, kind):
    assert _kind(names) == kind


@pytest.mark.parametrize(
    ("event", "stats", "name"),
    [
        ("dot.3", {"hlo_op": "dot.3", "hlo_module": "jit_step"}, "dot.3"),
        ("%fusion.7 = f32[8]{0} fusion(...)", {}, "fusion.7"),
        # As an H200 has them.
        (
            "input_reduce_fusion_49",
            {"hlo_op": "command_buffer_1", "cuda_graph_id": 3523, "cuda_graph_node_id": 15131},
            "input_reduce_fusion.49",
        ),
        (
            "nvjet_sm90_tst_128x160_64x5_2x1_v_bz_NNT",
            {"hlo_op": "command_buffer_1", "cuda_graph_id": 3523, "cuda_graph_node_id": 15139},
            "nvjet_sm90_tst_128x160_64x5_2x1_v_bz_NNT",
        ),
    ],
)
def test_an_event_is_named_by_its_operation_within_a_graph_too(event, stats, name):
    assert _name(event, stats, {"input_reduce_fusion_49": "input_reduce_fusion.49"}) == name


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_tst_128x160_64x5_2x1_v_bz_NNT", "products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x", "products"),
        ("Memset 0", "copies, casts and transpositions"),
        ("memcpy32_post", "copies, casts and transpositions"),
        ("somebody_s_kernel", "not known"),
    ],
)
def test_a_kernel_of_a_library_is_known_by_its_name(kernel, kind):
    assert _of_library(kernel).kind == kind


def test_operations_of_a_step_are_found_with_their_kinds_and_sources(tmp_path):
    def jitted(scope):
        def step(x):
            with jax.named_scope(scope):
                y = jnp.exp(x @ x)
            return x / jnp.linalg.norm(y), jnp.sort(y, axis=None)

        return jax.jit(step)

    x = jnp.ones((300, 300)) / 300
    # Those of other phases are in memory, and in the trace.
    before, step, after = (jitted(scope) for scope in ("before", "loss", "after"))
    jax.block_until_ready([run(x) for run in (before, step, after)])
    profile = Profile(tmp_path)
    with profile:
        for number in range(12):
            profile.before(x, 12 - number)
            x, _ = step(x)
            profile.after(x, last=False)
    assert profile.steps == STEPS and profile.seconds > 0
    times = operation_times(next(tmp_path.rglob("*.xplane.pb")))
    kinds = {operation.kind for operation in times.operations.values()}
    assert {"products", "look-ups"} <= kinds
    (product,) = {o.source for o in times.operations.values() if o.kind == "products"}
    assert product.startswith("loss/") and "dot_general" in product
    assert all(spent >= 0 for spent in times.nanoseconds.values())
    lines = profile.table()
    assert lines[0].startswith(f"{STEPS} steps under the profiler, ")
    shares = [float(share) for share in re.findall(r"([\d.]+)%", "\n".join(lines))]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))


def test_a_phase_that_is_too_short_or_broken_off_says_that_nothing_was_traced(tmp_path):
    short, broken = Profile(tmp_path / "short"), Profile(tmp_path / "broken")
    with short:
        short.before(jnp.ones(2), 1)
        short.after(jnp.ones(2), last=True)
    with pytest.raises(KeyboardInterrupt), broken:
        for left in (9, 8, 7, 6):
            broken.before(jnp.ones(2), left)
            broken.after(jnp.ones(2), last=False)
        raise KeyboardInterrupt
    for profile in (short, broken):
        assert profile.steps == 0 and "no step was traced" in profile.table()[0]


@pytest.mark.slow
def test_train_with_a_profile_says_where_the_time_goes_and_ends_with_the_same_bits(tmp_path, cache):
    teacher = commands.write_small_teacher(tmp_path / "given")
    flags = (f"--config.teacher={teacher}", *commands.SMALL, "--config.general.steps=9")
    flags += ("--config.general.checkpoint_every=0",)
    recipe = f"{commands.GENERAL}:smoke"
    plain = commands.train(recipe, tmp_path / "plain", *flags, cache=cache)
    traced = commands.train(recipe, tmp_path / "traced", *flags, "--profile", cache=cache)
    hashes = [
        commands.read(tmp_path / name / "summary.json")["parameter_hash"]
        for name in ("plain", "traced")
    ]
    assert hashes[0] == hashes[1]
    assert "profiler" not in plain.stdout
    said = traced.stdout
    assert re.search(rf"^{STEPS} steps under the profiler, [\d.,]+ ms each -> ", said, re.MULTILINE)
    shares = dict(re.findall(r"^  ([a-z ,-]+?) +[\d.,]+ +([\d.]+)%$", said, re.MULTILINE))
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=0.1 * len(shares))
    assert float(shares["products"]) > 0 and "not known" not in shares
    assert len(list((tmp_path / "traced/profile/general").rglob("*.trace.json.gz"))) == 1
