"""jaxbert serve: a real server on loopback, asked by a thousand clients at once."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
from small import visible_params

import jaxbert
from jaxbert.cli.main import main
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.export import export
from jaxbert.interop.huggingface import write_model

pytest.importorskip("onnxruntime")
pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
CLIENTS = 1_000
LABELS = ("negative", "positive")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An exported model."""
    root = tmp_path_factory.mktemp("served")
    tokenizer = load_tokenizer(commands.write_vocabulary(root / "vocabulary"))
    config = commands.TEACHER.replace(num_labels=2)
    write_model(root / "model", config, visible_params(config, 1), LABELS, tokenizer)
    export(str(root / "model"), root / "to", ("huggingface", "onnx"))
    return root / "to"


@pytest.fixture(scope="module")
def port(folder) -> Any:
    """A server; in the end it is told to stop, and does."""
    words = [str(folder), "--port=0", "--max_waiting=2000"]
    server = subprocess.Popen(
        [sys.executable, "-m", "jaxbert", "serve", *words],
        cwd=commands.ROOT,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = server.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), server.communicate(timeout=60)
        yield int(line.rsplit(":", 1)[1])
        server.send_signal(signal.SIGTERM)
        assert server.communicate(timeout=60) == ("", "") and server.returncode == 0
    finally:
        server.kill()
        server.wait()


async def ask(port: int, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """One request on a connection of its own: the status and what came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = b"" if body is None else json.dumps(body).encode()
    head = {"Host": "x", "Connection": "close", "Content-Length": str(len(content))}
    head |= {"Content-Type": "application/json"} | headers
    if "Transfer-Encoding" in headers:
        content = f"{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n"
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in head.items() if value]
    writer.write("\r\n".join([*lines, "", ""]).encode() + content)
    await writer.drain()
    said = await reader.read()
    writer.close()
    first, _, rest = said.partition(b"\r\n\r\n")
    return int(first.split()[1]), json.loads(rest)


def once(port: int, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    return asyncio.run(ask(port, path, body, **headers))


def test_a_thousand_requests_at_once_are_all_answered_as_jaxbert_answers(port, folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * CLIENTS
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"{hard} open files are allowed, {needed} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    texts = [f"a {('dull', 'moving')[i % 2]} film " + "and so on " * (i % 4) for i in range(40)]
    want = jaxbert.load(folder).predict(texts)

    async def all_at_once() -> list[tuple[int, Any]]:
        asked = ({"texts": [texts[i % len(texts)]]} for i in range(CLIENTS))
        return await asyncio.gather(*(ask(port, "/predict", body) for body in asked))

    found = asyncio.run(all_at_once())
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [status for status, _ in found] == [200] * CLIENTS
    for i, (_, said) in enumerate(found):
        (one,) = said["predictions"]
        expected = want[i % len(texts)]
        assert one["label"] == expected["label"]
        have, scores = (np.array(list(x["scores"].values())) for x in (one, expected))
        np.testing.assert_allclose(have, scores, atol=1e-4)
    said = {"status": "ok", "kind": "classification", "labels": list(LABELS), "waiting": 0}
    assert once(port, "/health") == (200, said)


def test_what_is_wrong_or_too_much_is_refused_and_nothing_else(port):
    for body, status in (
        ({"texts": ["a film", ["a film", "of wit"], ""]}, 200),
        ({"texts": []}, 200),
        ({"texts": "a film"}, 422),
        ({"text": ["a film"]}, 422),
        ({"texts": [["one", "two", "three"]]}, 422),
        ({"texts": ["x" * 100_001]}, 422),
        ({"texts": ["x"] * 257}, 422),
        ({"texts": ["\ud800"]}, 422),
    ):
        assert once(port, "/predict", body)[0] == status, str(body)[:80]
    assert once(port, "/predict", {}, **{"Content-Length": str(5 << 20)})[0] == 413
    for length in ("", "5"):
        chunked = {"Content-Length": length, "Transfer-Encoding": "chunked"}
        assert once(port, "/predict", {}, **chunked)[0] == 411
    assert once(port, "/predict", {"texts": ["a film"]})[0] == 200


def test_what_there_is_no_room_for_is_to_come_again_unless_there_never_is(folder):
    from jaxbert.service import OnnxModel, make_app

    app = make_app(OnnxModel(folder), most=4, wait=60.0, room=4)

    async def statuses() -> list[int]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", http="h11"))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            port = listener.getsockname()[1]

            async def status(texts: int) -> int:
                return (await ask(port, "/predict", {"texts": ["a film"] * texts}))[0]

            first = asyncio.create_task(status(3))  # it waits for one more
            while (await ask(port, "/health"))[1]["waiting"] != 3:
                pass
            found = [await status(2), await status(1), await first, await status(4)]
            found.append(await status(5))
            server.should_exit = True
            await serving
        return found

    assert asyncio.run(statuses()) == [503, 200, 200, 200, 413]


def test_a_folder_without_onnx_is_refused(folder, tmp_path, capsys):
    for words, said in (
        ([str(folder), "--int8"], "no model_quantized.onnx"),
        ([str(tmp_path)], "no model.onnx"),
        ([str(folder), "--max_batch=0"], "a limit that lets nothing through"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["serve", *words])
        (line,) = capsys.readouterr().err.splitlines()
        assert left.value.code == 2 and line.startswith(f"jaxbert: error: {said}")


def test_a_model_without_a_head_is_refused_before_it_serves(folder, tmp_path, capsys):
    tokenizer = load_tokenizer(folder)
    params = visible_params(commands.TEACHER, 1)
    write_model(tmp_path / "encoder", commands.TEACHER, params, (), tokenizer)
    export(str(tmp_path / "encoder"), tmp_path / "to", ("onnx",))
    with pytest.raises(SystemExit):
        main(["serve", str(tmp_path / "to"), "--port=0"])
    assert "the model has no head that predicts" in capsys.readouterr().err
