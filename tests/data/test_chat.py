"""The chat template."""

from __future__ import annotations

import pytest

from qa_jax.data import apply_chat_template
from qa_jax.data.tokenizer import AUDIO
from qa_jax.errors import InputError
from tests.conftest import CLIP, make_waveform

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def part(seconds: float = 0.5, **more: object) -> dict:
    return {"type": "audio", "audio": (make_waveform(seconds), 16_000), **more}


def test_voice_chat_and_audio_analysis() -> None:
    voice = apply_chat_template([{"role": "user", "content": [part()]}], add_generation_prompt=True)
    asked = {"type": "text", "text": "What is it?"}
    analysis = apply_chat_template(
        [{"role": "user", "content": [part(), asked]}], add_generation_prompt=True
    )
    head, tail = (
        f"{SYSTEM}<|im_start|>user\nAudio 1: {CLIP}\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    )
    assert voice.text == head + tail
    assert analysis.text == head + "What is it?" + tail


def test_clips_are_numbered_through_the_conversation() -> None:
    prompt = apply_chat_template(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [part(), part(), {"type": "text", "text": "Same?"}]},
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": [part()]},
        ]
    )
    assert prompt.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\nAudio 1: {CLIP}\nAudio 2: {CLIP}\nSame?<|im_end|>\n"
        "<|im_start|>assistant\nNo.<|im_end|>\n"
        f"<|im_start|>user\nAudio 3: {CLIP}\n<|im_end|>\n"
    )
    assert len(prompt.audio) == 3
    assert [s.text for s in prompt.spans if s.is_target] == ["No.<|im_end|>"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "not a list of messages"),
        ([{"role": "user"}], "message 1: has no content"),
        ([{"role": "robot", "content": "hi"}], "unknown role 'robot'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "part of type 'image'"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "without audio"),
        ([{"role": "user", "content": AUDIO}], r"text contains <\|AUDIO\|>"),
        ([{"role": "user", "content": 3}], "neither text nor a list"),
        ([{"role": "user", "content": "hi", "loss": True}], "has a loss, but is the user's"),
        ([{"role": "assistant", "content": "hi", "loss": -1}], "loss is -1; give false, true"),
        ([{"role": "assistant", "content": "hi", "loss": "no"}], "loss is 'no'"),
        ([{"role": "assistant", "content": "hi", "loss": 1, "weight": 1}], "loss is 1, 1"),
    ],
)
def test_bad_messages_are_refused(messages: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        apply_chat_template(messages)
