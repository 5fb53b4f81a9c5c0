"""Google Cloud Storage's JSON API in memory, with faults: what gcsfs and TensorStore ask of it.

Preconditions and ranges are honoured: without them TensorStore would overwrite other data.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import google_crc32c

Object = tuple[bytes, int]
"""Content and generation."""


class Emulator(BaseHTTPRequestHandler):
    """One bucket's requests. `fail_every` answers every n-th request with 503."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, Object]]
    uploads: ClassVar[dict[str, tuple[str, dict[str, list[str]], bytearray]]]
    lock = threading.RLock()
    fail_every = 0
    requests = generation = 0

    def handle_one(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        cls = type(self)
        with cls.lock:
            cls.requests += 1
            if cls.fail_every and cls.requests % cls.fail_every == 0:
                return self.answer(503, b"try again")
            url = urllib.parse.urlsplit(self.path)
            query = urllib.parse.parse_qs(url.query)
            if url.path.startswith("/batch/"):
                return self.batch(body)
            return self.answer(*self.route(self.command, url.path, query, body))

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_one

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def answer(self, code: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def route(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple:
        match = re.match(r"(/upload|/download)?/(?:storage/v1/)?b/([^/]+)(?:/o(?:/(.*))?)?$", path)
        if not match:
            return 404, b"{}"
        kind, name = match.group(1), urllib.parse.unquote(match.group(3) or "")
        if kind == "/upload":
            return self.upload(method, query, body)
        if not name:
            if "/o" not in path.rpartition("/b/")[2]:
                return 200, json.dumps({"name": match.group(2), "kind": "storage#bucket"}).encode()
            return 200, json.dumps(self.list(query)).encode()
        copy = re.match(r"(.+)/(?:rewriteTo|copyTo)/b/[^/]+/o/(.+)$", match.group(3) or "")
        if copy:
            source, target = (urllib.parse.unquote(part) for part in copy.groups())
            if source not in self.objects:
                return 404, b"{}"
            found = self.put(target, self.objects[source][0], query)
            return 200, json.dumps({"done": True, "resource": json.loads(found[1])}).encode()
        if name.endswith("/compose"):
            parts = json.loads(body)["sourceObjects"]
            content = b"".join(self.objects[part["name"]][0] for part in parts)
            return self.put(name.removesuffix("/compose"), content, query)
        if name not in self.objects:
            return 404, b"{}"
        if method == "DELETE":
            wanted = query.get("ifGenerationMatch")
            if wanted and int(wanted[0]) != self.objects[name][1]:
                return 412, b"{}"
            del self.objects[name]
            return 204, b""
        if kind == "/download" or query.get("alt") == ["media"]:
            return self.media(name)
        return 200, json.dumps(self.describe(name)).encode()

    def media(self, name: str) -> tuple:
        content, generation = self.objects[name]
        headers = {
            "x-goog-generation": str(generation),
            "x-goog-stored-content-length": str(len(content)),
        }
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not found:
            return 200, content, headers
        first, last = found.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last) + 1 if first and last else len(content), len(content))
        if start >= len(content):
            return 416, b"", {"Content-Range": f"bytes */{len(content)}"}
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return 206, content[start:end], headers

    def upload(self, method: str, query: dict[str, list[str]], body: bytes) -> tuple:
        kind = query.get("uploadType", ["media"])[0]
        if "upload_id" in query:
            name, first_query, buffer = self.uploads[query["upload_id"][0]]
            buffer += body
            total = (self.headers.get("Content-Range") or "/*").rpartition("/")[2]
            if total == "*" or len(buffer) < int(total):
                return 308, b"", {"Range": f"bytes=0-{len(buffer) - 1}"} if buffer else {}
            return self.put(name, bytes(buffer), first_query)
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"]).group(1)  # type: ignore[union-attr]
            parts = body.split(f"--{boundary}".encode())[1:-1]
            texts = [re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in parts]
            return self.put(json.loads(texts[0])["name"], re.sub(rb"\r?\n$", b"", texts[1]), query)
        name = query["name"][0] if "name" in query else json.loads(body)["name"]
        if kind == "resumable":
            key = str(len(self.uploads))
            self.uploads[key] = (name, query, bytearray())
            host = self.headers["Host"]
            location = f"http://{host}/upload/storage/v1/b/x/o?uploadType=resumable&upload_id={key}"
            return 200, b"", {"Location": location}
        return self.put(name, body, query)

    def put(self, name: str, content: bytes, query: dict[str, list[str]]) -> tuple:
        wanted = query.get("ifGenerationMatch")
        if wanted and int(wanted[0]) != self.objects.get(name, (b"", 0))[1]:
            return 412, b"{}"
        cls = type(self)
        cls.generation += 1
        self.objects[name] = (content, cls.generation)
        return 200, json.dumps(self.describe(name)).encode()

    def describe(self, name: str) -> dict[str, Any]:
        content, generation = self.objects[name]
        crc = google_crc32c.value(content).to_bytes(4, "big")
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "test",
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "crc32c": base64.b64encode(crc).decode(),
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
        }

    def list(self, query: dict[str, list[str]]) -> dict[str, Any]:
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        names, prefixes = [], set()
        for name in sorted(self.objects):
            if name.startswith(prefix):
                head, found, _ = (
                    name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                )
                if found:
                    prefixes.add(prefix + head + delimiter)
                else:
                    names.append(name)
        items = [self.describe(name) for name in names]
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def batch(self, body: bytes) -> None:
        """Deletions in one request, as gcsfs sends them."""
        answers = []
        for path in re.findall(rb"DELETE (\S+) HTTP", body):
            code, _ = self.route("DELETE", urllib.parse.urlsplit(path.decode()).path, {}, b"")[:2]
            answers.append(
                f"--x\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {code} OK\r\n"
                "Content-Length: 0\r\n\r\n\r\n"
            )
        text = "".join(answers) + "--x--\r\n"
        self.answer(200, text.encode(), {"Content-Type": "multipart/mixed; boundary=x"})

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """Clients that are killed leave broken connections."""


@contextmanager
def emulator(fail_every: int = 0) -> Iterator[tuple[type[Emulator], dict[str, str]]]:
    """A running emulator, and the environment that directs clients to it."""
    state: dict[str, Any] = {"objects": {}, "uploads": {}, "fail_every": fail_every}
    handler = type("OneEmulator", (Emulator,), state)
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield (
            handler,
            {
                "STORAGE_EMULATOR_HOST": address,
                "TENSORSTORE_GCS_HTTP_URL": address,
                "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
                "NO_GCE_CHECK": "true",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
                "GOOGLE_CLOUD_PROJECT": "test",
            },
        )
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with emulator(int(sys.argv[1])) as (_, environment):
        print(json.dumps(environment), flush=True)
        threading.Event().wait()
