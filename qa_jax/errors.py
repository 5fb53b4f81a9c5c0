"""The one error that a user's input can cause."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that names the source (a file, a record, a setting), the cause and the
    remedy; the command line prints it as it is and exits with code 2.
    """

    def __init__(self, source: object, cause: str, remedy: str = "") -> None:
        self.source, self.cause, self.remedy = str(source), cause, remedy
        super().__init__(f"{source}: {cause}" + (f"; {remedy}" if remedy else ""))

    def within(self, source: object) -> "InputError":
        """The same error seen from further out, as from the manifest line that led here; itself
        where it is named from there already."""
        if self.source.startswith(str(source)):
            return self
        return InputError(f"{source}: {self.source}", self.cause, self.remedy)
