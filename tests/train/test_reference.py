"""Precomputed log-probabilities of the reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from qa_jax.errors import InputError
from qa_jax.train import train
from tests.runs import dpo_config, losses, stopping_after

pytestmark = pytest.mark.usefixtures("one_device")


def test_precomputed_reference_is_reused_and_checked(
    settings: dict, pairs: Path, tiny_checkpoint: Path
) -> None:
    run = dpo_config(settings, pairs, tiny_checkpoint, "--dpo.reference=precomputed")
    with stopping_after(4), pytest.raises(Exception, match="stopped at step"):
        train(run)  # two batches of the reference are placed before the first step's
    path = Path(run.train.output_dir) / "reference.jsonl"
    written = path.read_text()
    assert len(written.splitlines()) == 6
    train(run)
    assert path.read_text() == written and len(losses(run.train.output_dir)) == 8
    rows = pairs.read_text().splitlines()
    pairs.write_text("\n".join([rows[0].replace("a man", "the fox"), *rows[1:]]))
    with pytest.raises(InputError, match=r"reference\.jsonl: lacks .*pairs\.jsonl:1"):
        train(run)
    path.unlink()
    with pytest.raises(InputError, match="is missing, though the run has begun"):
        train(run)
