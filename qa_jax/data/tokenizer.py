"""Text to ids and back: byte-level BPE for released models, SentencePiece for new models."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from qa_jax.config import read_json
from qa_jax.errors import InputError
from qa_jax.paths import PathLike, as_path, is_remote

if TYPE_CHECKING:
    import tokenizers

AUDIO, AUDIO_BOS, AUDIO_EOS = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, AUDIO, AUDIO_BOS, AUDIO_EOS)

# Qwen2's pre-tokenizer regex, from its tokenizer.json.
_QWEN2_PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@runtime_checkable
class Tokenizer(Protocol):
    """The tokenizer interface."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text; a special token in it becomes its single id."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; the bytes of an incomplete character become U+FFFD."""

    def token_bytes(self, token: int) -> bytes:
        """What an id adds to a text, in UTF-8, of which it may be a part of a character."""

    def id_of(self, token: str) -> int:
        """The id of a special token; raises InputError if the vocabulary lacks it."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""


class ByteLevelBPE:
    """A released checkpoint's tokenizer, through the `tokenizers` library.

    Args:
        directory: with tokenizer.json, or vocab.json and merges.txt. Special tokens and their ids
            are read from these files alone.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        path = self.directory / "tokenizer.json"
        self._tokenizer = (
            _read_tokenizer_json(path) if path.is_file() else _from_vocab(self.directory)
        )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token: int) -> bytes:
        piece = self._tokenizer.id_to_token(token) or ""
        alphabet = _byte_level_alphabet()
        if all(character in alphabet for character in piece):
            return bytes(alphabet[character] for character in piece)
        return piece.encode()  # an added token, which is plain text

    def id_of(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        return _required(found, token, self.directory)

    @cached_property
    def vocab_size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1


class SentencePiece:
    """A SentencePiece model whose user-defined symbols include the special tokens."""

    FILE = "sentencepiece.model"

    def __init__(self, directory: str | Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self.directory = Path(directory)
        try:
            self._model = SentencePieceProcessor(model_file=str(self.directory / self.FILE))
        except (OSError, RuntimeError) as error:
            raise InputError(
                self.directory / self.FILE, f"not a SentencePiece model ({error})"
            ) from None
        self._special = {self._model.piece_to_id(t) for t in SPECIAL_TOKENS}

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        # A model's vocabulary is rounded up: ids past the last piece have no text.
        known = [int(i) for i in ids if i < self.vocab_size]
        return self._model.decode(
            [i for i in known if not (skip_special_tokens and i in self._special)]
        )

    def token_bytes(self, token: int) -> bytes:
        if token >= self.vocab_size:
            return b""
        piece = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            return bytes([int(piece[3:5], 16)])  # "<0x0A>"
        return piece.replace("\u2581", " ").encode()

    def id_of(self, token: str) -> int:
        found = self._model.piece_to_id(token)
        return _required(None if self._model.is_unknown(found) else found, token, self.directory)

    @property
    def vocab_size(self) -> int:
        return self._model.get_piece_size()

    @classmethod
    def train(
        cls,
        lines: Iterable[str],
        directory: str | Path,
        vocab_size: int,
        phrases: Sequence[str] = (),
    ) -> SentencePiece:
        """Trains a model on lines of text and saves it.

        Newline, the special tokens and `phrases` get ids of their own; unseen characters fall back
        to bytes. The model type is BPE, which merges up to whole words in a small vocabulary.
        """
        from sentencepiece import SentencePieceTrainer

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_prefix=str(directory / cls.FILE.removesuffix(".model")),
                vocab_size=vocab_size,
                model_type="bpe",
                user_defined_symbols=[*SPECIAL_TOKENS, "\n", *phrases],
                byte_fallback=True,
                character_coverage=1.0,
                # Decoding must reproduce the text: no normalization, trimming or prefix.
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            cause = str(error).split("] ")[-1] or str(error)
            raise InputError(
                directory, f"training failed: {cause}", "give more text, or a smaller --vocab-size"
            ) from None
        (directory / "sentencepiece.vocab").unlink(missing_ok=True)
        return cls(directory)


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """Bytes by the characters that byte-level BPE writes for them: printable ones as they are, the
    others as the characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def load_tokenizer(directory: PathLike) -> Tokenizer | None:
    """The tokenizer in a directory, or None if it has none."""
    if is_remote(directory):
        # The libraries read local files.
        with tempfile.TemporaryDirectory() as local:
            for path in as_path(directory).iterdir():
                if path.suffix in (".json", ".txt", ".model"):
                    (Path(local) / path.name).write_bytes(path.read_bytes())
            return load_tokenizer(local)
    directory = Path(directory)
    if (directory / SentencePiece.FILE).is_file():
        return SentencePiece(directory)
    if (directory / "tokenizer.json").is_file() or (directory / "vocab.json").is_file():
        return ByteLevelBPE(directory)
    return None


def _required(found: int | None, token: str, directory: Path) -> int:
    if found is None:
        raise InputError(
            directory, f"the vocabulary has no {token}", "copy all the tokenizer's files"
        )
    return found


def _read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower type
        raise InputError(path, f"not a tokenizer ({error})", "download it again") from None


def _from_vocab(directory: Path) -> tokenizers.Tokenizer:
    """Qwen2's tokenizer from vocab.json, merges.txt and the file that lists its added tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as pre

    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    if not merges.is_file():
        raise InputError(merges, "not found", "copy it beside vocab.json")
    tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(_QWEN2_PRE_TOKENIZER), behavior="isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = _added_tokens(directory)
    for token_id, token in sorted(added.items()):
        if tokenizer.token_to_id(token) is None and token_id != tokenizer.get_vocab_size():
            raise InputError(
                directory,
                f"{token} has id {token_id} after a vocabulary of {tokenizer.get_vocab_size()}",
                "copy vocab.json and tokenizer_config.json from the same checkpoint",
            )
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    return tokenizer


def _added_tokens(directory: Path) -> dict[int, str]:
    """Added tokens by id, from tokenizer_config.json or added_tokens.json."""
    config, added = directory / "tokenizer_config.json", directory / "added_tokens.json"
    if config.is_file():
        entries = read_json(config).get("added_tokens_decoder", {})
        if entries:
            return {int(i): entry["content"] for i, entry in entries.items()}
    if added.is_file():
        return {int(i): token for token, i in json.loads(added.read_text()).items()}
    raise InputError(
        directory,
        "no file names the special tokens",
        "add the checkpoint's tokenizer.json or tokenizer_config.json",
    )
