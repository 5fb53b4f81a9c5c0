"""Bodies that are no JSON."""

from __future__ import annotations

import pytest

from qa_jax.serve.errors import ApiError
from qa_jax.serve.schema import parse_json


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b'{"a": "\\ud800"}', b"[" * 100_000, b'{"a": 1e}'],
)
def test_what_is_no_object(raw: bytes) -> None:
    with pytest.raises(ApiError, match="the body is not") as caught:
        parse_json(raw)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_characters_in_two_halves() -> None:
    assert parse_json(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}
