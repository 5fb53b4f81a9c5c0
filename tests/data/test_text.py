"""Tokenizers, the chat form, the processor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qa_jax.data import ByteLevelBPE, Processor, SentencePiece, apply_chat_template, load_tokenizer
from qa_jax.data.tokenizer import AUDIO, SPECIAL_TOKENS
from qa_jax.errors import InputError
from tests.conftest import sound

CLIP = "<|audio_bos|><|AUDIO|><|audio_eos|>"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def part(seconds: float = 0.5, **more: object) -> dict:
    return {"type": "audio", "audio": (sound(seconds), 16_000), **more}


def test_voice_chat_and_analysis_differ_by_text_alone() -> None:
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
    ],
)
def test_bad_messages_are_refused(messages: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        apply_chat_template(messages)


def test_sentencepiece_gives_text_back(tokenizer_dir: Path) -> None:
    tokenizer = SentencePiece(tokenizer_dir)
    for text in ("what is three plus four", "a  b\n c ", "naïve 今天 🙂", "", " lead"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    for token in SPECIAL_TOKENS:
        assert tokenizer.encode(token) == [tokenizer.id_of(token)]
    assert tokenizer.decode([*tokenizer.encode("a man"), tokenizer.vocab_size + 3]) == "a man"
    said = tokenizer.encode("a man<|im_end|>")
    assert tokenizer.decode(said) == "a man"
    assert tokenizer.decode(said, skip_special_tokens=False) == "a man<|im_end|>"


@pytest.fixture(scope="session")
def bpe_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level tokenizer in Qwen2's files, both kinds."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    from tests.conftest import TEXT

    directory = tmp_path_factory.mktemp("bpe")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.model.save(str(directory))
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    tokenizer.save(str(directory / "tokenizer.json"))
    added = {str(size + i): {"content": t} for i, t in enumerate(SPECIAL_TOKENS)}
    config = {"added_tokens_decoder": added}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_bpe_from_either_files(bpe_dir: Path, tmp_path: Path) -> None:
    whole = ByteLevelBPE(bpe_dir)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_text((bpe_dir / name).read_text())
    parts = load_tokenizer(tmp_path)
    assert isinstance(parts, ByteLevelBPE)
    for text in ("what is three plus four", f"{SYSTEM}Audio 1: {CLIP}\n", "naïve 🙂"):
        assert parts.encode(text) == whole.encode(text)
        assert whole.decode(whole.encode(text), skip_special_tokens=False) == text
    assert whole.vocab_size == parts.vocab_size == whole.id_of("<|audio_eos|>") + 1


def test_bpe_without_special_tokens_is_refused(bpe_dir: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text((bpe_dir / name).read_text())
    with pytest.raises(InputError, match="no file names the special tokens"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(InputError, match="merges.txt: not found"):
        load_tokenizer(tmp_path)


def test_placeholders_become_tokens(processor: Processor) -> None:
    batch = processor([f"{CLIP}what", "no sound"], [(sound(1.0), 16_000)])
    assert (batch["input_ids"][0] == processor.audio_token_id).sum() == 25
    assert batch["audio"].shape == (1, 16_000) and batch["audio_lengths"].tolist() == [16_000]
    row = batch["input_ids"][1][batch["attention_mask"][1] == 1]
    assert processor.tokenizer.decode(row) == "no sound"
    assert batch["attention_mask"][1, 0] == 0, "padded on the left"
    right = processor([f"{CLIP}what", "no"], [(sound(1.0), 16_000)], padding_side="right")
    assert right["attention_mask"][1, -1] == 0 and right["attention_mask"][1, 0] == 1


def test_one_conversation_or_several(processor: Processor) -> None:
    one = [{"role": "user", "content": [part(0.5)]}]
    two = [{"role": "user", "content": [part(0.3), part(0.9)]}]
    batch = processor.apply_chat_template([one, two], add_generation_prompt=True)
    assert batch["audio_lengths"].tolist() == [8_000, 4_800, 14_400]
    alone = processor.apply_chat_template(one, add_generation_prompt=True)
    kept = batch["attention_mask"][0] == 1
    np.testing.assert_array_equal(batch["input_ids"][0][kept], alone["input_ids"][0])


def test_answers_are_marked(processor: Processor) -> None:
    messages = [
        {"role": "user", "content": [part(1.0)]},
        {"role": "assistant", "content": "three plus four"},
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": "seven"},
    ]
    ids, answer = processor.tokenize_with_targets(apply_chat_template(messages), [16_000])
    learned = [i for i, a in zip(ids, answer, strict=True) if a]
    text = processor.tokenizer.decode(learned, skip_special_tokens=False)
    assert text == "three plus four<|im_end|>seven<|im_end|>"
    assert ids == processor.tokenize(apply_chat_template(messages).text, [16_000])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(text=CLIP), r"1 <\|AUDIO\|> placeholder\(s\) for 0 clip\(s\)"),
        (dict(text="hi", audio=[(sound(1), 16_000)]), r"0 <\|AUDIO\|> placeholder\(s\) for 1"),
        (dict(text=CLIP, audio=[sound(1)]), "without their sampling rate"),
        (
            dict(text=CLIP, audio=[sound(1)], sampling_rate=8_000),
            "8000 Hz, the model's rate is 16000",
        ),
        (dict(text=CLIP, audio=sound(1), audios=sound(1)), "given twice"),
        (dict(text=CLIP, audio=sound(1), sampling_rate=16_000, padding_side="up"), "padding_side"),
    ],
)
def test_bad_calls_are_refused(processor: Processor, call: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        processor(**call)


def test_the_old_keyword_is_heard(processor: Processor) -> None:
    new = processor(CLIP, audio=[sound(1)], sampling_rate=16_000)
    old = processor(CLIP, audios=[sound(1)], sampling_rate=16_000)
    np.testing.assert_array_equal(new["audio"], old["audio"])
    with pytest.raises(TypeError):
        processor(CLIP, sound=[sound(1)])  # type: ignore[call-arg]


def test_real_vocabulary(assets) -> None:  # type: ignore[no-untyped-def]
    folder = assets / "tokenizer"
    tokenizer = ByteLevelBPE(folder)
    assert [tokenizer.id_of(t) for t in SPECIAL_TOKENS] == list(range(151_643, 151_649))
    texts = (folder / "qwen2_vectors.inp").read_text().split("\n__ggml_vocab_test__\n")
    expected = (folder / "qwen2_vectors.out").read_text().splitlines()
    assert len(expected) > 20
    for text, line in zip(texts, expected, strict=False):
        assert tokenizer.encode(text) == [int(i) for i in line.split()], repr(text)
