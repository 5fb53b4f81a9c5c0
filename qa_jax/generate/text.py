"""Answers as text while they grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""Ids to text."""
_UNFINISHED = "\ufffd"
"""What the first bytes of a character decode to."""


class TextStream:
    """The text of an answer, token by token.

    Args:
        decode: ids to text.
        stop: texts that end the answer; neither they nor what follows belongs to it.

    Attributes:
        stopped_by: the one that came, or None.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._ids: list[int] = []
        # Text before `_first` is out; decoding from there instead of from the start takes a time
        # that does not grow. `_first` lags, since a token's text depends on the one before.
        self._first = self._read = 0
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, token: int) -> str:
        """Text that is certain after one more token; empty while a character is incomplete or a
        stop text may have begun."""
        if self.stopped_by is not None:
            return ""
        self._ids.append(token)
        before = self._decode(self._ids[self._first : self._read])
        text = self._decode(self._ids[self._first :])
        if text.endswith(_UNFINISHED) or len(text) <= len(before):
            return ""
        self._first, self._read = self._read, len(self._ids)
        return self._release(text[len(before) :])

    def finish(self) -> str:
        """What was held back at the end of the answer."""
        if self.stopped_by is not None:
            return ""
        before = self._decode(self._ids[self._first : self._read])
        text = self._release(self._decode(self._ids[self._first :])[len(before) :])
        self._first = self._read = len(self._ids)
        held, self._held = self._held, ""
        return text if self.stopped_by is not None else text + held

    def _release(self, text: str) -> str:
        """Held and new text up to a stop text, or to where one may have begun."""
        text = self._held + text
        found = [(at, s) for at, s in ((text.find(s), s) for s in self._stop) if at >= 0]
        if found:
            at, self.stopped_by = min(found)
            self._held = ""
            return text[:at]
        most = max((len(s) for s in self._stop), default=1) - 1
        keep = next(
            (
                n
                for n in range(min(most, len(text)), 0, -1)
                if any(s.startswith(text[-n:]) for s in self._stop)
            ),
            0,
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
