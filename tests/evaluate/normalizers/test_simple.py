"""Lower case without punctuation."""

from __future__ import annotations

from qa_jax.evaluate.normalizers.simple import normalize


def test_words() -> None:
    assert normalize("Don't stop — it's GOOD, twice!") == ["don't", "stop", "it's", "good", "twice"]
