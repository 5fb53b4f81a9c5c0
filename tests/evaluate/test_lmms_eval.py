"""lmms-eval drives a checkpoint through the entry point, and says what `qa-jax score` says.

QA_JAX_LMMS_EVAL=PYTHON is an interpreter with lmms-eval and this package, whose requirements
(torch among them) are not those of the tests:

    python -m venv lmms && lmms/bin/pip install torch lmms-eval==0.7.3 \
        editdistance zhconv "filelock<3.20" && lmms/bin/pip install -e .

QA_JAX_CHECKPOINT=DIR and QA_JAX_LIBRISPEECH=DIR are the model and the data then.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from qa_jax.evaluate import score
from tests.evaluate.layouts.data import parquet

PYTHON = os.environ.get("QA_JAX_LMMS_EVAL")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="QA_JAX_LMMS_EVAL names no interpreter with lmms-eval"
)
TASK = "local_librispeech"
FUNCTIONS = """
from lmms_eval.tasks.librispeech.utils import librispeech_process_result, librispeech_wer


def to_audio(doc):
    return [doc["audio"]]


def to_text(doc, lmms_eval_specific_kwargs):
    return lmms_eval_specific_kwargs["pre_prompt"]
"""


def write_task(directory: Path, data: Path, prompt: str) -> None:
    directory.mkdir()
    (directory / "functions.py").write_text(FUNCTIONS)
    kwargs = {"pre_prompt": prompt, "post_prompt": ""}
    task = {
        "task": TASK,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(data / "test.parquet")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_target": "gt",
        "generation_kwargs": {"max_new_tokens": 24, "temperature": 0, "do_sample": False},
        "metric_list": [
            {"metric": "wer", "higher_is_better": False, "aggregation": "@librispeech_wer"}
        ],
        "lmms_eval_specific_kwargs": {
            "default": {"pre_prompt": "another prompt", "post_prompt": ""},
            "qwen2_audio": kwargs,
        },
        "doc_to_visual": "@to_audio",
        "doc_to_text": "@to_text",
        "process_results": "@librispeech_process_result",
        "metadata": [{"version": 0.0}],
    }
    text = yaml.safe_dump(task)
    for name in ("librispeech_wer", "to_audio", "to_text", "librispeech_process_result"):
        text = text.replace(f"'@{name}'", f"!function functions.{name}")
    (directory / f"{TASK}.yaml").write_text(text)


def test_its_wer_is_ours(
    benchmark_data: Callable[[str], str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    root = Path(os.environ.get("QA_JAX_LIBRISPEECH") or benchmark_data("librispeech"))
    checkpoint = os.environ.get("QA_JAX_CHECKPOINT", str(tiny_checkpoint))
    rows = []
    for file in sorted((root / "test-clean").glob("*/*/*.trans.txt")):
        for line in file.read_text().splitlines():
            name, text = line.split(" ", 1)
            sound = (file.parent / f"{name}.flac").read_bytes()
            row = {"audio": {"bytes": sound, "path": f"{name}.flac"}, "gt": text, "task": "asr_en"}
            rows.append({**row, "source": "librispeech_test_clean", "id": name})
    parquet(tmp_path / "data", rows)
    write_task(tmp_path / "tasks", tmp_path / "data", "Transcribe.")
    command = [
        str(PYTHON),
        "-m",
        "lmms_eval",
        "--model",
        "qwen2_audio",
        "--tasks",
        TASK,
        "--model_args",
        f"pretrained={checkpoint}",
        "--batch_size",
        "4",
        "--log_samples",
        "--include_path",
        str(tmp_path / "tasks"),
        "--output_path",
        str(tmp_path / "out"),
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HOME": str(tmp_path / "hf")}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, (found.stdout + found.stderr)[-3000:]
    (results,) = (tmp_path / "out").rglob("*results.json")
    theirs = json.loads(results.read_text())["results"][TASK]["wer,none"]
    (samples,) = (tmp_path / "out").rglob(f"*samples_{TASK}.jsonl")
    answers = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(answers) == len(rows)
    ours = score(
        [
            {"id": str(a["doc_id"]), "benchmark": "librispeech", "subset": "test-clean",
             "language": "en", "reference": rows[a["doc_id"]]["gt"],
             "prediction": a["filtered_resps"]}
            for a in answers
        ]
    )  # fmt: skip
    assert ours.scores[0].metric == "wer"
    assert ours.scores[0].value.value == pytest.approx(theirs, abs=1e-10)
    print(
        f"WER of {len(rows)} answers: lmms-eval {theirs}, qa-jax score {ours.scores[0].value.value}"
    )
