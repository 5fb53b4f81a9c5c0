"""Settings of the server; `qa-jax serve` has an option for each."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, fields
from typing import TypeVar

from qa_jax.errors import InputError

_Value = TypeVar("_Value")


def _setting(default: _Value, text: str) -> _Value:
    found: _Value = field(default=default, metadata={"help": text})
    return found


@dataclass(frozen=True)
class ServeConfig:
    """How the server listens, and what it takes. All limits are per request, unless they say
    otherwise; a request over one is refused with an error that names it."""

    host: str = _setting("127.0.0.1", "address to listen on; others than loopback need a key")
    port: int = _setting(8000, "port to listen on; 0 for a free one")
    max_body_mib: int = _setting(32, "largest body")
    max_audio_seconds: float = _setting(3600.0, "longest clip")
    window_seconds: float = _setting(30.0, "windows that longer clips are split into")
    max_clips: int = _setting(16, "clips in a prompt")
    max_choices: int = _setting(16, "answers to a request: its n, times its prompts")
    max_new_tokens: int = _setting(2048, "tokens of an answer")
    max_queue: int = _setting(256, "answers that wait for a slot, of all requests together")
    max_connections: int = _setting(1024, "open connections, of all clients together")
    request_seconds: float = _setting(300.0, "time for an answer")
    receive_seconds: float = _setting(30.0, "time for sending a request")
    cached_audio_mib: int = _setting(256, "memory for clips that later requests name by uuid")
    transcription_prompt: str = _setting("", "instruction of transcriptions")
    translation_prompt: str = _setting("", "instruction of translations")
    page: bool = _setting(True, "serve the page at /")

    def check(self, num_keys: int) -> None:
        """Raises InputError for limits that are not positive, and for a server without a key that
        others than this machine could use."""
        for f in fields(self):
            value = getattr(self, f.name)
            least = 0 if f.name in ("port", "page", "cached_audio_mib") else 1e-3
            if not isinstance(value, str) and value < least:
                raise InputError(f.name, f"{value} is too small", "give a larger one")
        try:
            is_loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            is_loopback = self.host == "localhost"
        if not is_loopback and not num_keys:
            raise InputError(
                "--host",
                f"{self.host} can be reached by others, and there is no key",
                "set QA_JAX_API_KEYS, or --api-key-file FILE",
            )
