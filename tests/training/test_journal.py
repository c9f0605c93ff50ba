"""What a run says while it works, as files have it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxbert.training.journal import Journal


def test_a_damaged_line_of_the_journal_is_said_and_a_half_written_last_one_is_not(tmp_path, capsys):
    journal, path = Journal(tmp_path), tmp_path / "metrics.jsonl"
    lines = [
        '{"phase": "a", "step": 1}',
        '{"phase": "a", "step"',
        "[]",
        '{"phase": "a", "step": 2}',
    ]
    odd = b'{"phase": "a", "step": 1e999}\n{"phase": "\xed\xa0\x80", "step": 1}\n'
    path.write_bytes("\n".join(lines).encode() + b"\n" + odd + b'{"phase": "b", "st')
    journal.rewind("b", 0)
    assert path.read_text() == lines[0] + "\n" + lines[3] + "\n"
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {path}:2 is not as it was written and 3 more, and is left")
    journal.rewind("a", 1)
    assert path.read_text() == lines[0] + "\n" and not capsys.readouterr().err


def test_curves_that_find_no_room_are_an_error_and_not_a_wait(tmp_path):
    """A disk may be full for TensorBoard's file before it is for metrics.jsonl."""
    journal = Journal(tmp_path)
    journal.write("a", 1, {"loss": 1.0})
    curves = {str(path) for path in (tmp_path / "tensorboard" / "a").iterdir()}
    opened = Path("/proc/self/fd").iterdir()
    (number,) = (int(each.name) for each in opened if os.path.realpath(each) in curves)
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), number)
    with pytest.raises(OSError, match="No space left"):
        for step in range(2, 10_000):
            journal.write("a", step, {"loss": 1.0})
    with pytest.raises(OSError, match="No space left"):
        journal.close()


def test_curves_hide_what_was_written_beyond_the_step_that_is_gone_on_from(tmp_path):
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    journal = Journal(tmp_path)
    journal.rewind("a", 4)
    for step in (5, 6):
        journal.write("a", step, {"loss": step / 8, "mfu": None})
    journal.close()
    (path,) = (tmp_path / "tensorboard" / "a").iterdir()
    events, content = [], path.read_bytes()
    while content:  # a length of 8 bytes, and 4 of a checksum before the event and behind it
        end = 12 + int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12:end]))
        content = content[end + 4 :]
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (5, SessionLog.START)
    points = [(e.step, [(v.tag, v.simple_value) for v in e.summary.value]) for e in events[2:]]
    assert points == [(5, [("loss", 0.625)]), (6, [("loss", 0.75)])]


def test_curves_do_without_torch_and_leave_it_to_others(tmp_path):
    pytest.importorskip("torch")
    code = (
        "import sys, jaxbert.training.journal as j; from pathlib import Path\n"
        "journal = j.Journal(Path(sys.argv[1])); journal.write('a', 1, {'loss': 1.0})\n"
        "print('tensorboardX' in sys.modules, 'torch' in sys.modules)\n"
        "import torch; print(torch.ones(2).sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False", "2.0"]
