"""Answers as text while they grow."""

from __future__ import annotations

from collections.abc import Sequence

from qa_jax.generate.text import TextStream

PIECES = ["tell", " me", " abc", " now"]


def decode(ids: Sequence[int]) -> str:
    return "".join(PIECES[i] for i in ids)


def test_the_first_of_several_stops_ends_the_text() -> None:
    stream = TextStream(decode, ("c", "b", "now"))
    assert "".join(stream.push(i) for i in range(3)) + stream.finish() == "tell me a"
    assert stream.stopped_by == "b"


def test_what_may_begin_a_stop_is_held_back() -> None:
    stream = TextStream(decode, (" abcd",))
    assert [stream.push(i) for i in range(3)] == ["tell", " me", ""]
    assert stream.push(3) == " abc now"
    assert stream.stopped_by is None
