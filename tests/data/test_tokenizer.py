"""Tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest

from qa_jax.data import ByteLevelBPE, SentencePiece, load_tokenizer
from qa_jax.data.tokenizer import SPECIAL_TOKENS
from qa_jax.errors import InputError
from tests.conftest import CLIP

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def test_sentencepiece_round_trip(tokenizer_dir: Path) -> None:
    tokenizer = SentencePiece(tokenizer_dir)
    for text in ("what is three plus four", "a  b\n c ", "naïve 今天 🙂", "", " lead"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    for token in SPECIAL_TOKENS:
        assert tokenizer.encode(token) == [tokenizer.id_of(token)]
    assert tokenizer.decode([*tokenizer.encode("a man"), tokenizer.vocab_size + 3]) == "a man"
    output = tokenizer.encode("a man<|im_end|>")
    assert tokenizer.decode(output) == "a man"
    assert tokenizer.decode(output, skip_special_tokens=False) == "a man<|im_end|>"


def test_bpe_from_both_kinds_of_files(bpe_dir: Path, tmp_path: Path) -> None:
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


def test_real_vocabulary(assets) -> None:  # type: ignore[no-untyped-def]
    folder = assets / "tokenizer"
    tokenizer = ByteLevelBPE(folder)
    assert [tokenizer.id_of(t) for t in SPECIAL_TOKENS] == list(range(151_643, 151_649))
    texts = (folder / "qwen2_vectors.inp").read_text().split("\n__ggml_vocab_test__\n")
    expected = (folder / "qwen2_vectors.out").read_text().splitlines()
    assert len(expected) > 20
    for text, line in zip(texts, expected, strict=False):
        assert tokenizer.encode(text) == [int(i) for i in line.split()], repr(text)
