"""A conversation on the terminal."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qa_jax.config import SAMPLE_RATE, JsonDict
from qa_jax.data import AudioSource
from qa_jax.errors import InputError

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer

_COMMANDS = {
    ":audio FILE [FILE ...]": "then a line of text, or an empty line for voice chat",
    ":record SECONDS": "a clip from the microphone",
    ":system TEXT": "the system message, of a new conversation",
    ":undo": "take back the last turn",
    ":retry": "answer the last turn again",
    ":save FILE": "write the conversation as a manifest",
    ":reset": "start a new conversation",
    ":help": "this list",
    ":quit": "or end of input",
}
Load = Callable[[str], AudioSource]
Reply = Callable[[list[JsonDict]], Iterator[str]]


class Chat:
    """A conversation that is kept, and its commands.

    Args:
        reply: streams the answer to a conversation.
        load_clip: reads an audio file.
        system: the system message.
    """

    def __init__(self, reply: Reply, load_clip: Load, system: str | None = None) -> None:
        self._reply, self._load_clip = reply, load_clip
        self.start(system)

    def start(self, system: str | None) -> None:
        """Starts a new conversation."""
        self.system = system
        self.messages: list[JsonDict] = []
        self.clips: list[JsonDict] = []
        if system:
            self.messages.append({"role": "system", "content": system})

    def handle(self, line: str) -> bool:
        """One line of input; False to end."""
        command, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if command == ":quit":
            return False
        if command == ":audio":
            self.clips += self._load(_paths(rest))
        elif command == ":record":
            self.clips.append(_record(rest))
        elif command == ":system":
            self.start(rest)
        elif command == ":reset":
            self.start(self.system)
        elif command == ":undo":
            self._undo()
        elif command == ":retry":
            if not self._undo(keep_question=True):
                raise InputError(":retry", "there is no turn yet", "ask something")
            self._answer()
        elif command == ":save":
            self._save(rest)
        elif command.startswith(":") and command not in (":", ":help"):
            raise InputError(command, "no such command", ":help lists them")
        elif command == ":help":
            print_help()
        elif line.strip() or self.clips:
            text = [{"type": "text", "text": line.strip()}] if line.strip() else []
            self.messages.append({"role": "user", "content": self.clips + text})
            self.clips = []
            self._answer()
        return True

    def _answer(self) -> None:
        answer = ""
        try:
            for text in self._reply(self.messages):
                answer += text
                print(text, end="", flush=True)
        except KeyboardInterrupt:
            pass  # the answer so far is kept
        except InputError:
            self.messages.pop()
            raise
        print()
        self.messages.append({"role": "assistant", "content": answer})

    def _undo(self, keep_question: bool = False) -> bool:
        """Takes back the last answer, and its question; False if there is none."""
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            return False
        self.messages.pop()
        if not keep_question:
            self.messages.pop()
        return True

    def _load(self, paths: list[str]) -> list[JsonDict]:
        """The clips that can be read; errors of the others are printed."""
        clips = []
        for path in paths:
            try:
                clips.append({"type": "audio", "audio": self._load_clip(path), "path": path})
            except InputError as error:
                print(f"error: {error}")
        return clips

    def _save(self, name: str) -> None:
        if not name:
            raise InputError(":save", "names no file", "write :save FILE")
        messages, path = [], Path(name)
        for message in self.messages:
            content = message["content"]
            if not isinstance(content, str):
                content = [self._saved_part(part, path) for part in content]
            messages.append({"role": message["role"], "content": content})
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        print(f"added to {path}")

    def _saved_part(self, part: JsonDict, path: Path) -> JsonDict:
        """A part with its clip as a path; a recorded one is written beside the file."""
        if part["type"] != "audio":
            return part
        if part["path"] is None:
            import soundfile

            number = sum(1 for _ in path.parent.glob(f"{path.stem}.*.wav")) + 1
            file = path.with_name(f"{path.stem}.{number}.wav")
            soundfile.write(file, *part["audio"])
            part["path"] = str(file)
        return {"type": "audio", "audio": str(Path(part["path"]).absolute())}


def chat_loop(chat: Chat, history: Path) -> None:
    """Reads lines from the terminal, with history and completion, or from a pipe."""
    print_help()
    read = _reader(history) if sys.stdin.isatty() else input
    while True:
        try:
            line = read("instruction> " if chat.clips else "you> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            continue
        try:
            if not chat.handle(line):
                return
        except (InputError, OSError) as error:
            print(f"error: {error}")


def print_help() -> None:
    """Prints the commands."""
    print("Type a message, or give audio with or without one:")
    for command, text in _COMMANDS.items():
        print(f"  {command:24}  {text}")


def _reader(history: Path) -> Callable[[str], str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    history.parent.mkdir(parents=True, exist_ok=True)
    return PromptSession(history=FileHistory(str(history)), completer=command_completer()).prompt


def command_completer() -> Completer:
    """Completes commands, and files after those that take one."""
    from prompt_toolkit.completion import (
        NestedCompleter,
        PathCompleter,
        WordCompleter,
        merge_completers,
    )

    files = PathCompleter(expanduser=True)
    commands = sorted({name.split()[0] for name in _COMMANDS})
    return merge_completers(
        [
            # For the nested one a word starts behind the colon.
            WordCompleter(commands, sentence=True),
            NestedCompleter(dict.fromkeys((":audio", ":save"), files)),
        ]
    )


def _paths(text: str) -> list[str]:
    """One file with spaces in its name, or several; those with spaces are quoted."""
    if not text:
        raise InputError(":audio", "names no file", "write :audio FILE")
    whole = Path(text).expanduser()
    if whole.exists():
        return [str(whole)]
    try:
        return [str(Path(part).expanduser()) for part in shlex.split(text)]
    except ValueError as error:
        raise InputError(":audio", str(error), "close the quotation") from None


def _record(text: str) -> JsonDict:
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # without PortAudio
        raise InputError(
            ":record", f"the microphone cannot be read ({error})", "pip install sounddevice"
        ) from None
    try:
        seconds = float(text or 5)
    except ValueError:
        raise InputError(":record", f"{text!r} are no seconds", "write :record 5") from None
    print(f"recording {seconds:g} s ...", flush=True)
    samples = sounddevice.rec(int(seconds * SAMPLE_RATE), SAMPLE_RATE, 1, "float32")
    sounddevice.wait()
    return {"type": "audio", "audio": (samples[:, 0], SAMPLE_RATE), "path": None}
