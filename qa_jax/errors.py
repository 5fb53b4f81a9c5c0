"""The one error that a user's input can cause, and the remedy for a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A user's input cannot be used.

    The message is one line that names the source (a file, a record, a setting), the cause and the
    remedy; the command line prints it as it is and exits with code 2.
    """

    def __init__(self, source: object, cause: str, remedy: str = "") -> None:
        self.source, self.cause, self.remedy = str(source), cause, remedy
        super().__init__(f"{source}: {cause}" + (f"; {remedy}" if remedy else ""))

    def within(self, source: object) -> InputError:
        """The error with an outer source, such as the manifest line that names the file.

        Returns the error itself if its source already starts with the outer one.
        """
        if self.source.startswith(str(source)):
            return self
        return InputError(f"{source}: {self.source}", self.cause, self.remedy)


def suggest(name: str, known: Iterable[str]) -> str:
    """A remedy for a misspelt name: the closest known name, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "known: " + ", ".join(names)
