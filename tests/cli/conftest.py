"""What commands ask the model."""

from __future__ import annotations

import pytest

from qa_jax.generate import Answer, Engine, Request


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that engines get, as text."""
    found, submit = list[str](), Engine.submit

    def kept(self: Engine, request: Request) -> Answer:
        assert request.decode is not None
        found.append(request.decode(request.tokens.tolist()))
        return submit(self, request)

    monkeypatch.setattr(Engine, "submit", kept)
    return found
