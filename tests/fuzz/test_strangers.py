"""Strangers' files, spoilt at random: read, or refused in one line; nothing else comes out."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from strangers import CHANGES, KINDS, PIECES, Kind, good, read_changed, read_spoilt

from jaxbert.files import sealed
from jaxbert.interop.tensors import INDEX

ROOM = 2 << 30  # bytes of addresses that reading a few kilobytes may take beside what is there


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strangers")


@pytest.mark.parametrize("name", KINDS)
def test_good_files_are_read(name, root):
    KINDS[name].read(good(name, root))


@pytest.mark.parametrize("name", KINDS)
def test_spoilt_files_are_read_or_refused(name, root):
    @settings(max_examples=8, derandomize=True, database=None)
    @given(CHANGES)
    def spoilt(changes):
        read_spoilt(name, root, changes)

    spoilt()


@pytest.mark.parametrize(
    "place", ["../beside", "../../outside", "../../good vocabulary/vocab.txt", "../../new/deep"]
)
def test_what_reading_writes_elsewhere_is_a_failure(place, root, monkeypatch):
    def read(folder: Path) -> None:
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text("\n".join(PIECES))

    good("vocabulary", root)
    monkeypatch.setitem(KINDS, "writes", Kind(lambda folder: None, read))
    with pytest.raises(AssertionError, match="written elsewhere"):
        read_changed("writes", root, lambda folder: None)
    (root / "case" / "here" / place).resolve().unlink()


# What was found, each mended: (kind, file, what stands in its place or, as a pair, what by what).
FOUND = [
    ("tokenizer", "tokenizer_config.json", b'{"unk_token": []}'),
    ("tokenizer", "tokenizer_config.json", b"[" * 5000),
    ("tokenizer", "tokenizer_config.json", b'{"do_lower_case": "yes"}'),
    ("tokenizer", "tokenizer.json", (b'"bad": 9', b'"bad": 2147483648')),
    ("tokenizer", "tokenizer.json", (b'"unk_token": "[UNK]"', b'"unk_token": ""')),
    ("sharded model", INDEX, b'{"weight_map": {"a": []}}'),
    ("sharded model", INDEX, b'{"weight_map": {"a": "\\u0000"}}'),
    ("corpus", "manifest.json", (b'"name": "', b'"name": "../')),
    ("corpus", "manifest.json", (b'"name": "', b'"name": "' + b"9" * 5000)),
    ("corpus", "manifest.json", (b'"documents": ', b'"documents": 1e')),
    ("corpus", "manifest.json", (b'"dtype": "<u2"', b'"dtype": "O"')),
    ("corpus", "manifest.json", b'{"format": ' + b"[" * 5000),
    ("corpus", "lengths.npy", (b"(", b"((")),
    ("corpus", "lengths.npy", None),
    ("corpus", "records.npy", (b"\x01\x00\x00\x00", b"\xff\xff\xff\x7f")),
    ("vectors", "vectors.txt", b"film 1 inf\nbad 1 1\n"),
    ("vectors", "vectors.txt", b"film 1 1e38\nbad 1 1\n"),
    ("parquet", "rows.parquet", (b"\x05label", b"\x05l\xe5bel")),
]


@pytest.mark.parametrize(("name", "file", "content"), FOUND)
def test_what_was_found_is_refused(name, file, content, root):
    def change(path: Path) -> None:
        if content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            old, new = content
            assert old in path.read_bytes()
            path.write_bytes(path.read_bytes().replace(old, new, 1))

    assert read_changed(name, root, lambda folder: change(folder / file))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("metadata", "best", [1, "x"]),
        ("metadata", "best", 7),
        ("metadata", "leaves", []),
        ("metadata", "leaves", {"w": 1}),
        ("metadata", "leaves", {"w": {"dtype": "float32", "shape": [6]}}),
        ("metadata", "note", None),
        ("metadata", "due", 1),
        ("metadata", "more", 1),
        ("judgement", "metric", "high"),
        ("judgement", "note", []),
    ],
)
def test_a_checkpoint_that_is_sealed_and_wrong_is_refused(file, key, value, root):
    def change(folder: Path) -> None:
        path = folder / "1" / "record" / file
        content = json.loads(path.read_text())["content"] | {key: value}
        path.write_text(sealed(content))

    said = read_changed("checkpoint", root, change)
    assert said.startswith("the checkpoint of step 1 is damaged: its record cannot be read")


@pytest.mark.fuzz
@pytest.mark.parametrize("name", KINDS)
def test_spoilt_files_are_read_or_refused_for_long(name, root, request):
    """As `make fuzz SECONDS=60` has it: each kind for so long."""
    good(name, root)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, limits[1]))
    until = time.monotonic() + request.config.getoption("--fuzz-seconds")
    told, count, failed, number = set(), 0, False, int(time.time())
    try:
        while time.monotonic() < until:

            @seed(number)
            @settings(max_examples=50, database=None)
            @given(CHANGES, st.just(None))
            def spoilt(changes, _):
                nonlocal count, failed
                if failed or time.monotonic() < until:
                    count, failed = count + 1, True  # until it has not
                    told.add(read_spoilt(name, root, changes).partition(",")[0][:60])
                    failed = False

            spoilt()
            number += 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    print(f"{name}: {count} spoilt, {len(told)} messages")
