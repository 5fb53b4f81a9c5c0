"""The processor: placeholders, targets, padding, and errors."""

from __future__ import annotations

import numpy as np
import pytest

from qa_jax.data import Processor, apply_chat_template
from qa_jax.errors import InputError
from tests.conftest import CLIP, make_waveform


def part(seconds: float = 0.5, **more: object) -> dict:
    return {"type": "audio", "audio": (make_waveform(seconds), 16_000), **more}


def test_placeholders_are_expanded(processor: Processor) -> None:
    batch = processor([f"{CLIP}what", "no sound"], [(make_waveform(1.0), 16_000)])
    assert (batch["input_ids"][0] == processor.audio_token_id).sum() == 25
    assert batch["audio"].shape == (1, 16_000) and batch["audio_lengths"].tolist() == [16_000]
    row = batch["input_ids"][1][batch["attention_mask"][1] == 1]
    assert processor.tokenizer.decode(row.tolist()) == "no sound"
    assert batch["attention_mask"][1, 0] == 0, "padded on the left"
    right = processor([f"{CLIP}what", "no"], [(make_waveform(1.0), 16_000)], padding_side="right")
    assert right["attention_mask"][1, -1] == 0 and right["attention_mask"][1, 0] == 1


def test_one_conversation_or_several(processor: Processor) -> None:
    one = [{"role": "user", "content": [part(0.5)]}]
    two = [{"role": "user", "content": [part(0.3), part(0.9)]}]
    batch = processor.apply_chat_template([one, two], add_generation_prompt=True)
    assert batch["audio_lengths"].tolist() == [8_000, 4_800, 14_400]
    alone = processor.apply_chat_template(one, add_generation_prompt=True)
    kept = batch["attention_mask"][0] == 1
    np.testing.assert_array_equal(batch["input_ids"][0][kept], alone["input_ids"][0])


def test_targets_are_the_assistants_tokens(processor: Processor) -> None:
    messages = [
        {"role": "user", "content": [part(1.0)]},
        {"role": "assistant", "content": "three plus four"},
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": "seven"},
    ]
    ids, answer = processor.tokenize_with_weights(apply_chat_template(messages), [16_000])
    learned = [i for i, a in zip(ids, answer, strict=True) if a]
    text = processor.tokenizer.decode(learned, skip_special_tokens=False)
    assert text == "three plus four<|im_end|>seven<|im_end|>"
    assert ids == processor.tokenize(apply_chat_template(messages).text, [16_000])


def test_weights_of_messages(processor: Processor) -> None:
    """ms-swift's "loss" and OpenAI's "weight" change the weights of their tokens, and no id."""
    texts = ["three", "plus four", "seven", "turn on"]
    settings: list[dict] = [{}, {"loss": False}, {"weight": 0.5}, {"loss": True}]
    messages = []
    for text, setting in zip(texts, settings, strict=True):
        messages += [{"role": "user", "content": "what"}]
        messages += [{"role": "assistant", "content": text, **setting}]
    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    ids, weights = processor.tokenize_with_weights(apply_chat_template(messages), [])
    assert ids == processor.tokenize_with_weights(apply_chat_template(plain), [])[0]
    for weight, expected in ((1.0, "three<|im_end|>turn on<|im_end|>"), (0.5, "seven<|im_end|>")):
        kept = [i for i, w in zip(ids, weights, strict=True) if w == weight]
        assert processor.tokenizer.decode(kept, skip_special_tokens=False) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(text=CLIP), r"1 <\|AUDIO\|> placeholder\(s\) for 0 clip\(s\)"),
        (
            dict(text="hi", audio=[(make_waveform(1), 16_000)]),
            r"0 <\|AUDIO\|> placeholder\(s\) for 1",
        ),
        (dict(text=CLIP, audio=[make_waveform(1)]), "without their sampling rate"),
        (
            dict(text=CLIP, audio=[make_waveform(1)], sampling_rate=8_000),
            "8000 Hz, the model's rate is 16000",
        ),
        (dict(text=CLIP, audio=make_waveform(1), audios=make_waveform(1)), "given twice"),
        (
            dict(text=CLIP, audio=make_waveform(1), sampling_rate=16_000, padding_side="up"),
            "padding_side",
        ),
    ],
)
def test_bad_calls_are_refused(processor: Processor, call: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        processor(**call)


def test_audios_is_an_alias_of_audio(processor: Processor) -> None:
    new = processor(CLIP, audio=[make_waveform(1)], sampling_rate=16_000)
    old = processor(CLIP, audios=[make_waveform(1)], sampling_rate=16_000)
    np.testing.assert_array_equal(new["audio"], old["audio"])
    with pytest.raises(TypeError):
        processor(CLIP, sound=[make_waveform(1)])  # type: ignore[call-arg]
