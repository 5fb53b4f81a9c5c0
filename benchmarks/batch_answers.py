"""Word error rate of the same clips at batch sizes 1, 4, 16 and 64, here and in transformers.

    python benchmarks/batch_answers.py runs/demo

takes the demo's model and its test split; transformers answers with the same weights, converted,
from the same prompts in left-padded batches. Greedily in float32 and bfloat16, as the authors
evaluate, and with the repetition penalty of 1.1 that is in the released generation_config.json, for
which transformers counts the padding as text. The table is written to benchmarks/RESULTS.md between
its markers.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import torch
import transformers
from common import cpu_name, replace_section
from convert_weights.jax_to_hf import to_hf

import qa_jax
from qa_jax.data.questions import Question, read_questions
from qa_jax.evaluate import answer, metric_of_texts, read_answers

BATCHES = (1, 4, 16, 64)
NEW_TOKENS = 32
SETTINGS = (("float32", 1.0), ("bfloat16", 1.0), ("float32", 1.1))
"""Types, and repetition penalties."""


class Answers(NamedTuple):
    """Of all clips, at one batch size."""

    texts: list[str]
    word_error_rate: float


def ours(
    directory: Path, questions: list[Question], batch: int, dtype: str, penalty: float
) -> list[str]:
    """The engine's answers, so many side by side."""
    model = qa_jax.load(directory, dtype, num_slots=batch, capacity=256)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as name:
        output = Path(name, "answers.jsonl")
        answer(
            model,
            questions,
            output,
            max_new_tokens=NEW_TOKENS,
            repetition_penalty=penalty,
        )
        return [row["prediction"] for row in read_answers([output])]


class Peer:
    """transformers with the converted weights, and this package's tokenizer."""

    def __init__(self, directory: Path, converted: Path, dtype: str, penalty: float) -> None:
        self.penalty = penalty
        self.model = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(
            converted, dtype=getattr(torch, dtype)
        ).eval()
        loaded = qa_jax.load(directory)
        self.processor = loaded.require_processor()
        self.stop_ids = list(loaded.default_sampling.stop_ids)
        self.extractor = transformers.WhisperFeatureExtractor(
            feature_size=loaded.config.audio.num_mel_bins
        )

    def answers(self, questions: list[Question], batch: int) -> list[str]:
        found: list[str] = []
        for start in range(0, len(questions), batch):
            found += self._batch(questions[start : start + batch])
        return found

    def _batch(self, questions: list[Question]) -> list[str]:
        tokenized = []
        for question in questions:
            clips = self.processor.load(question.prompt.audio, base=question.base)
            tokenized.append(self.processor.tokenize_clips(question.prompt.text, clips))
        audio = self.extractor(
            [clips[0] for _, clips in tokenized],
            sampling_rate=16_000,
            return_attention_mask=True,
            padding="max_length",
            return_tensors="pt",
        )
        width = max(len(ids) for ids, _ in tokenized)
        ids = torch.zeros((len(tokenized), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (own, _) in enumerate(tokenized):
            ids[row, width - len(own) :] = torch.tensor(np.array(own))
            mask[row, width - len(own) :] = 1
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                input_features=audio["input_features"].to(self.model.dtype),
                feature_attention_mask=audio["attention_mask"],
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                repetition_penalty=self.penalty,
                eos_token_id=self.stop_ids,
                pad_token_id=self.stop_ids[0],
            )
        decode = self.processor.tokenizer.decode
        stops = set(self.stop_ids)
        return [
            decode([t for t in row if t not in stops]).strip() for row in out[:, width:].tolist()
        ]


def measure(demo: Path) -> list[str]:
    questions = read_questions(demo / "data" / "test_transcribe.jsonl")
    references = [question.row["reference"] for question in questions]

    def scored(texts: list[str]) -> Answers:
        return Answers(texts, metric_of_texts("wer", references, texts, "whisper"))

    lines = [
        f"{len(questions)} clips; {cpu_name()}, transformers {transformers.__version__}.",
        "",
        "| | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " | answers that change |",
        "|---|" + "---|" * (len(BATCHES) + 1),
    ]
    with tempfile.TemporaryDirectory() as name:
        converted = Path(name, "hf")
        to_hf(demo / "model", converted)
        for dtype, penalty in SETTINGS:
            peer = Peer(demo / "model", converted, dtype, penalty)
            how = dtype if penalty == 1 else f"{dtype}, penalty {penalty}"
            found = {
                f"transformers, {how}": [scored(peer.answers(questions, b)) for b in BATCHES],
                f"qa_jax, {how}": [
                    scored(ours(demo / "model", questions, b, dtype, penalty)) for b in BATCHES
                ],
            }
            for title, answers in found.items():
                changed = sum(
                    len(set(own)) > 1 for own in zip(*(a.texts for a in answers), strict=True)
                )
                rates = " | ".join(f"{100 * own.word_error_rate:.4f} %" for own in answers)
                lines.append(f"| {title} | {rates} | {changed} |")
                print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="what make demo made: runs/demo")
    replace_section("batch_answers", measure(parser.parse_args().demo))
