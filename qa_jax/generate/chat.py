"""A conversation on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from qa_jax.data import AudioSource
from qa_jax.errors import InputError

_HELP = """Type a message, or give audio with or without one:
  :audio FILE [FILE ...]    then a line of text, or an empty line for voice chat
  :reset                    start a new conversation
  :quit                     or end of input"""


def chat_loop(
    reply: Callable[[list[dict[str, Any]]], Iterator[str]],
    load_clip: Callable[[str], AudioSource],
) -> None:
    """Reads turns from the terminal and streams answers; the conversation is kept.

    Args:
        reply: streams the answer to a conversation.
        load_clip: reads an audio file.
    """
    print(_HELP)
    messages: list[dict[str, Any]] = []
    clips: list[AudioSource] = []
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
            clips += _load_clips(rest.split(), load_clip)
        elif line or clips:
            content = [{"type": "audio", "audio": clip} for clip in clips]
            content += [{"type": "text", "text": line}] if line else []
            messages.append({"role": "user", "content": content})
            clips = []
            answer = ""
            try:
                for text in reply(messages):
                    answer += text
                    print(text, end="", flush=True)
            except InputError as error:
                messages.pop()
                print(f"error: {error}")
                continue
            print()
            messages.append({"role": "assistant", "content": answer})


def _load_clips(paths: list[str], load_clip: Callable[[str], AudioSource]) -> list[AudioSource]:
    """The clips that can be read; errors of the others are printed."""
    clips = []
    for path in paths:
        try:
            clips.append(load_clip(path))
        except InputError as error:
            print(f"error: {error}")
    return clips
