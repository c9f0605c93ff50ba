"""An object store on loopback: as much of the JSON interface of Google Cloud Storage as is asked.

It keeps objects in memory, each with a generation, and holds every condition on a generation
against it under one lock: what real conditional writes promise. gcsfs, google-cloud-storage and
TensorStore are pointed at it by the variables of ``Store.environment``.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import email
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

BUCKET = "bucket"
_LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
_COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)")
_UPLOAD = re.compile(r"(?:/resumable)?/upload/storage/v1/b/([^/]+)/o")
_PAGE = 1000  # objects in one answer to a list


@dataclasses.dataclass
class Stored:
    """One object: its bytes, its generation and when it was written."""

    content: bytes
    generation: int
    updated: str


class Store:
    """The objects of one bucket, and the server that gives and takes them.

    Attributes:
      objects: name -> object.
      requests: (method, path) of every request that came, in order.
      refusing: answers every request with 503 while it is set.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.requests: list[tuple[str, str]] = []
        self.refusing = False
        self._damages = False
        self.lock = threading.RLock()
        self._generation = 1
        store = self

        class Handler(_Handler):
            pass

        Handler.store = store
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What points a process at the store."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",
            "GOOGLE_CLOUD_PROJECT": "nobody",
            # It asks by another protocol what kind of bucket it is; there is one kind here.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    @contextlib.contextmanager
    def damaged_on_the_way(self) -> Iterator[None]:
        """Every content that is read meanwhile has a flipped bit; its checksum has not."""
        self._damages = True
        try:
            yield
        finally:
            self._damages = False

    def sent(self, content: bytes) -> bytes:
        """What arrives of a content that is read."""
        return bytes([content[0] ^ 1]) + content[1:] if self._damages and content else content

    def close(self) -> None:
        """Ends the server."""
        self._server.shutdown()
        self._server.server_close()

    def names(self, prefix: str = "") -> list[str]:
        """The objects whose names begin so, sorted."""
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def put(self, name: str, content: bytes) -> Stored:
        """Writes an object whole."""
        with self.lock:
            self._generation += 1
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            self.objects[name] = Stored(content, self._generation, now)
            return self.objects[name]


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    store: Store
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece
    uploads: dict[str, tuple[str, dict[str, str], bytearray]] = {}  # noqa: RUF012

    def log_message(self, *words: Any) -> None:
        """Says nothing."""

    def handle(self) -> None:
        """Answers until the client is gone; one that was killed is nothing to speak of."""
        try:
            super().handle()
        except (ConnectionError, ValueError):
            self.close_connection = True

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self._body()
        self.store.requests.append((method, self.path))
        if self.store.refusing:
            self._send(503, b"refusing")
            return
        status, headers, content = self._act(method, self.path, body)
        self._send(status, content, headers)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _act(self, method: str, target: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of the answer to a request, or to a part of a batch."""
        url = urllib.parse.urlsplit(target)
        asked = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        path = url.path
        if path.startswith("/batch/"):
            return self._batch(body)
        with self.store.lock:
            if found := _UPLOAD.fullmatch(path):
                return self._upload(method, asked, body)
            if found := _COPY.fullmatch(path):
                source, target = (urllib.parse.unquote(found[i]) for i in (2, 4))
                if source not in self.store.objects:
                    return _failure(404)
                stored = self.store.put(target, self.store.objects[source].content)
                about = self._about(target, stored)
                return _json({"kind": "storage#rewriteResponse", "done": True, "resource": about})
            if found := _LIST.fullmatch(path):
                return self._list(asked)
            if found := _OBJECT.fullmatch(path):
                return self._object(method, urllib.parse.unquote(found[2]), asked, body)
        if re.fullmatch(r"/storage/v1/b/[^/]+", path):
            return _json({"kind": "storage#bucket", "name": BUCKET, "id": BUCKET})
        return _failure(404)

    def _about(self, name: str, stored: Stored) -> dict[str, Any]:
        digest = base64.b64encode(hashlib.md5(stored.content).digest()).decode()
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": BUCKET,
            "size": str(len(stored.content)),
            "generation": str(stored.generation),
            "metageneration": "1",
            "md5Hash": digest,
            "updated": stored.updated,
            "timeCreated": stored.updated,
            "storageClass": "STANDARD",
            "contentType": "application/octet-stream",
        }

    def _holds(self, name: str, asked: dict[str, str]) -> int:
        """0 if the conditions on a generation hold, else the status that says so."""
        now = self.store.objects[name].generation if name in self.store.objects else 0
        if "ifGenerationMatch" in asked and int(asked["ifGenerationMatch"]) != now:
            return 412
        if "ifGenerationNotMatch" in asked and int(asked["ifGenerationNotMatch"]) == now:
            return 304
        if "generation" in asked and int(asked["generation"]) != now:
            return 404
        return 0

    def _object(
        self, method: str, name: str, asked: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        stored = self.store.objects.get(name)
        if stored is None:
            return _failure(412 if asked.get("ifGenerationMatch", "0") != "0" else 404)
        if status := self._holds(name, asked):
            return _failure(status)
        if method == "DELETE":
            del self.store.objects[name]
            return 204, {}, b""
        if asked.get("alt") != "media":
            return _json(self._about(name, stored))
        digest = base64.b64encode(hashlib.md5(stored.content).digest()).decode()
        headers = {
            "x-goog-generation": str(stored.generation),
            "x-goog-metageneration": "1",
            "x-goog-hash": f"md5={digest}",
            "Content-Type": "application/octet-stream",
        }
        if ranged := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
            size = len(stored.content)
            if ranged[1]:
                first, last = int(ranged[1]), min(int(ranged[2] or size), size - 1)
            else:
                first, last = max(size - int(ranged[2]), 0), size - 1
            if first >= size:
                return _failure(416)
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            return 206, headers, self.store.sent(stored.content[first : last + 1])
        return 200, headers, self.store.sent(stored.content)

    def _list(self, asked: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        names = [n for n in self.store.names(prefix) if n >= asked.get("startOffset", "")]
        names = [n for n in names if "endOffset" not in asked or n < asked["endOffset"]]
        items, prefixes = [], []
        for name in names:
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folder = prefix + rest.partition(delimiter)[0] + delimiter
                if folder not in prefixes:
                    prefixes.append(folder)
                if not (asked.get("includeTrailingDelimiter") == "true" and name == folder):
                    continue
            items.append(name)
        first = int(asked.get("pageToken") or 0)
        most = min(int(asked.get("maxResults") or _PAGE), _PAGE)
        shown = [self._about(n, self.store.objects[n]) for n in items[first : first + most]]
        answer: dict[str, Any] = {"kind": "storage#objects", "items": shown}
        if not first:
            answer["prefixes"] = prefixes
        if len(items) > first + most:
            answer["nextPageToken"] = str(first + most)
        return _json(answer)

    def _upload(
        self, method: str, asked: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        kind = asked.get("uploadType")
        if kind == "media":
            return self._write(asked["name"], asked, body)
        if kind == "multipart":
            about, content = _parts(self.headers["Content-Type"], body)
            return self._write(json.loads(about)["name"], asked, content)
        if "upload_id" not in asked:
            name = asked.get("name") or json.loads(body)["name"]
            key = str(len(self.uploads))
            self.uploads[key] = name, asked, bytearray()
            where = f"{self.store.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable"
            return 200, {"Location": f"{where}&upload_id={key}"}, b""
        name, begun, held = self.uploads[asked["upload_id"]]
        held += body
        sizes = re.search(r"/(\d+|\*)", self.headers.get("Content-Range") or "")
        if sizes and (sizes[1] == "*" or int(sizes[1]) > len(held)):
            headers = {"Range": f"bytes=0-{len(held) - 1}"} if held else {}
            return 308, headers, b""
        return self._write(name, begun, bytes(held))

    def _write(
        self, name: str, asked: dict[str, str], content: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if status := self._holds(name, {k: v for k, v in asked.items() if k != "generation"}):
            return _failure(status)
        return _json(self._about(name, self.store.put(name, content)))

    def _batch(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Requests in the parts of one, as gcsfs deletes."""
        answers = []
        message = email.message_from_bytes(
            f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body
        )
        for part in message.get_payload():  # type: ignore[union-attr]
            text = part.get_payload(decode=True) or b""  # type: ignore[union-attr]
            method, target, _ = text.decode().strip().splitlines()[0].split(" ")
            status, _, content = self._act(method, target, b"")
            answers.append(
                f"--batch_answer\r\nContent-Type: application/http\r\n"
                f"Content-ID: <response-{part['Content-ID']}>\r\n\r\n"
                f"HTTP/1.1 {status} {'OK' if status < 300 else 'Failed'}\r\n"
                f"Content-Type: application/json\r\n\r\n{content.decode()}\r\n"
            )
        text = "".join(answers) + "--batch_answer--\r\n"
        return 200, {"Content-Type": "multipart/mixed; boundary=batch_answer"}, text.encode()


def _json(content: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _failure(status: int) -> tuple[int, dict[str, str], bytes]:
    content = {"error": {"code": status, "message": "no", "errors": [{"reason": "no"}]}}
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _parts(content_type: str, body: bytes) -> tuple[bytes, bytes]:
    """The two parts of a multipart upload, byte for byte."""
    match = re.search(r'boundary="?([^";]+)"?', content_type)
    assert match
    boundary = b"--" + match[1].encode()
    first, second = (
        body.split(boundary)[1:3] if body.count(boundary) == 3 else _long(body, boundary)
    )
    return _content(first), _content(second)


def _long(body: bytes, boundary: bytes) -> tuple[bytes, bytes]:
    """The same where the content has the boundary in it, too."""
    _, first, rest = body.split(boundary, 2)
    return first, rest.rpartition(boundary + b"--")[0]


def _content(part: bytes) -> bytes:
    """What stands behind the head of a part, without the line end before the next boundary."""
    end = b"\r\n" if part.startswith(b"\r\n") else b"\n"
    _, _, content = part.partition(end + end)
    return content.removesuffix(end)
