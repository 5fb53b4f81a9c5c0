"""A conversation on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qa_jax.data import load_audio
from qa_jax.errors import InputError

if TYPE_CHECKING:
    from qa_jax.api import LoadedModel

_HELP = """Type a message, or sound with or without one:
  :audio FILE [FILE ...]    then a line of text, or an empty one for voice chat
  :reset                    forget the conversation
  :quit                     or end of input"""


def converse(qa: LoadedModel, settings: dict[str, Any], sampling_rate: int | None = None) -> None:
    """Reads turns from the terminal and streams answers; everything said so far is remembered."""
    print(_HELP)
    messages: list[dict[str, Any]] = []
    clips: list[Any] = []
    while True:
        try:
            line = input("instruction> " if clips else "you> ").strip()
        except EOFError:
            return
        command, _, rest = line.partition(" ")
        if command == ":quit":
            return
        if command == ":reset":
            messages, clips = [], []
        elif command == ":audio":
            clips += _read(
                rest, sampling_rate, qa.processor.long_audio if qa.processor else "error"
            )
        elif line or clips:
            content = [{"type": "audio", "audio": clip} for clip in clips]
            content += [{"type": "text", "text": line}] if line else []
            messages.append({"role": "user", "content": content})
            clips = []
            answer = ""
            try:
                for piece in qa.chat(messages, stream=True, **settings):
                    answer += piece
                    print(piece, end="", flush=True)
            except InputError as error:
                messages.pop()
                print(f"error: {error}")
                continue
            print()
            messages.append({"role": "assistant", "content": answer})


def _read(paths: str, sampling_rate: int | None, long_audio: str) -> list[Any]:
    """Clips of a line of paths; a clip that cannot be used is told and left out."""
    clips = []
    for path in paths.split():
        try:
            samples = load_audio(path, sampling_rate=sampling_rate, long_audio=long_audio)
            clips.append((samples, 16_000))
        except InputError as error:
            print(f"error: {error}")
    return clips
