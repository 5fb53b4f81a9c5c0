"""Requests byte by byte."""

from __future__ import annotations

import socket
from contextlib import closing

from tests.serve.server import KEY, Running


def request(server: Running, raw: bytes, is_complete: bool = True, seconds: float = 30.0) -> bytes:
    """What is answered to bytes on a connection, until it is closed."""
    with closing(socket.create_connection(("127.0.0.1", server.port), seconds)) as connection:
        connection.sendall(raw)
        if is_complete:
            connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


def post(
    body: bytes, path: str = "/v1/chat/completions", length: int | None = None, **headers: str
) -> bytes:
    lines = {"Host": "127.0.0.1", "Authorization": f"Bearer {KEY}", "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines["Content-Length"] = str(len(body) if length is None else length)
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body
