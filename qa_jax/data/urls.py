"""Clips given as URLs: `data:` by anyone, `https:` and `http:` from hosts that the user named.

Whoever writes a conversation must not be able to make this machine ask others of its network: a
name is looked up once, the connection goes to the address that was checked, and no redirect is
followed.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fnmatch
import http.client
import ipaddress
import socket
import threading
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes, urlsplit

from qa_jax.errors import InputError

MAX_BYTES = 2**26
"""The largest file that is fetched."""
_TIMEOUT = 10.0
"""Seconds without a byte."""
_TOTAL_SECONDS = 60.0
_REMEDY = "name the host in audio_hosts (--audio-hosts), or give a file"


def is_url(audio: object) -> bool:
    """Whether a clip is given as a URL to fetch or to decode."""
    return isinstance(audio, str) and audio.startswith(("data:", "http://", "https://"))


def fetch(url: str, hosts: Sequence[str] = ()) -> bytes:
    """The contents of a URL.

    Args:
        url: data:, https: or http:.
        hosts: names that may be asked: "example.org", "*.example.org", or an address. A name must
            stand for a public address; an address, or "localhost", may be any.

    Raises:
        InputError: a host that is not among them, a private address, a redirect, an answer other
            than 200, more than 64 MiB, or no answer in a minute.
    """
    if url.startswith("data:"):
        return _decode_data(url)
    name = url.partition("?")[0]
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InputError(name, f"not a URL ({error})", "give https://HOST/PATH") from None
    if not any(fnmatch.fnmatchcase(host, pattern.lower()) for pattern in hosts):
        raise InputError(name, f"its host is none of {list(hosts)}", _REMEDY)
    is_secure = parts.scheme == "https"
    path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    try:
        address = _address(host, port or (443 if is_secure else 80), name)
        kind = http.client.HTTPSConnection if is_secure else http.client.HTTPConnection
        connection = kind(host, port, timeout=_TIMEOUT)
        # The host's name stays in the request and in the certificate's check.
        connection._create_connection = (  # type: ignore[attr-defined]
            lambda _, timeout=_TIMEOUT, source=None: socket.create_connection(address, timeout)
        )
        timer = threading.Timer(_TOTAL_SECONDS, _shut, [connection])
        timer.start()
        try:
            connection.request("GET", path, headers={"User-Agent": "qa_jax"})
            response = connection.getresponse()
            body = response.read(MAX_BYTES + 1) if response.status == 200 else b""
        finally:
            is_late = not timer.is_alive()
            timer.cancel()
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(name, f"cannot be fetched ({error})", "give a file") from None
    if is_late:
        raise InputError(name, f"takes over {_TOTAL_SECONDS:g} s", "give a file")
    if response.status != 200:
        raise InputError(name, f"answers {response.status} {response.reason}", "give its last URL")
    if len(body) > MAX_BYTES:
        raise InputError(name, f"is larger than {MAX_BYTES} bytes", "give a shorter clip")
    return body


def _shut(connection: http.client.HTTPConnection) -> None:
    """Ends the reading of an answer that comes byte by byte, each in time."""
    with contextlib.suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


def _address(host: str, port: int, name: str) -> tuple[str, int]:
    """A host's address, which is public unless the host is itself an address or "localhost"."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4]
    address = str(found[0])
    is_literal = host == "localhost" or host == address
    if not is_literal and not ipaddress.ip_address(address).is_global:
        raise InputError(name, f"{host} has the private address {address}", _REMEDY)
    return address, port


def _decode_data(url: str) -> bytes:
    """RFC 2397."""
    head, _, data = url.partition(",")
    try:
        raw = unquote_to_bytes(data)
        return base64.b64decode(raw, validate=True) if head.endswith(";base64") else raw
    except (binascii.Error, ValueError) as error:
        name = f"{head[:40]},..."
        raise InputError(name, f"not base64 ({error})", "write data:audio/wav;base64,...") from None
