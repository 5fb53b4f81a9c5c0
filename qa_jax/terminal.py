"""What the command-line programs share: exit codes, warnings, progress bars."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qa_jax.errors import InputError

RESTART = 75
"""Exit code of a job that the same command, started again, continues: sysexits' EX_TEMPFAIL."""

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_writing = threading.Lock()


def exit_code(command: Callable[[], int | None]) -> int:
    """Runs a command; 2 is the exit code of every input that cannot be used."""
    warnings.showwarning = _show_warning
    try:
        return command() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0


def _show_warning(
    message: Warning | str, category: type[Warning], *_: object, **__: object
) -> None:
    if issubclass(category, UserWarning):
        with _writing:  # text files lose what several threads write at once
            sys.stderr.write(f"warning: {message}\n")


@contextmanager
def progress_bar(title: str, is_bytes: bool = False, is_rate: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr, if that is a terminal; of bytes, or of items (`is_rate`), with
    their speed."""
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    columns = list(rich.Progress.get_default_columns())
    if is_bytes:
        columns = [
            rich.TextColumn(title),
            rich.BarColumn(),
            rich.DownloadColumn(),
            rich.TransferSpeedColumn(),
            rich.TimeRemainingColumn(),
        ]
    if is_rate:
        speed = rich.TextColumn("{task.completed}/{task.total}, {task.fields[rate]} a second")
        columns.append(speed)
    with rich.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, rate="?")

        def update(done: int, total: int) -> None:
            rate = bar.tasks[task].speed
            shown = "?" if rate is None else f"{rate:.1f}"
            bar.update(task, completed=done, total=total, rate=shown)

        yield update
