"""Precomputed log-probabilities of the reference."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from qa_jax.errors import InputError
from qa_jax.train import train
from qa_jax.train.reference import attach_reference_log_probs
from qa_jax.train.run import prepare
from qa_jax.train.state import initial_params
from tests.runs import dpo_config, losses, stopping_after

pytestmark = pytest.mark.usefixtures("one_device")


def test_precomputed_reference_is_reused_and_checked(
    settings: dict, pairs: Path, tiny_checkpoint: Path
) -> None:
    run = dpo_config(settings, pairs, tiny_checkpoint, "--dpo.reference=precomputed")
    with stopping_after(2), pytest.raises(Exception, match="stopped at step"):
        train(run)
    path = Path(run.train.output_dir) / "reference.jsonl"
    written = path.read_text()
    assert len(written.splitlines()) == 7  # and the digest of the parameters
    train(run)
    assert path.read_text() == written and len(losses(run.train.output_dir)) == 8
    rows = pairs.read_text()
    pairs.write_text(rows.replace("a man", "the fox", 1))
    with pytest.raises(InputError, match=r"data\.train: its records are not those"):
        train(run)
    pairs.write_text(rows)
    path.unlink()
    with pytest.raises(InputError, match="is missing, though the run has begun"):
        train(run)


def test_a_stale_reference_is_computed_again(
    settings: dict, pairs: Path, tiny_checkpoint: Path
) -> None:
    """A file left by a run that was killed before its first save, of other parameters or records:
    the second run must not train against it."""
    run = prepare(dpo_config(settings, pairs, tiny_checkpoint, "--dpo.reference=precomputed"))
    path = Path(run.config.train.output_dir) / "reference.jsonl"
    path.parent.mkdir(parents=True)
    params = initial_params(run)
    console = Console(quiet=True)
    with jax.set_mesh(run.mesh):
        attach_reference_log_probs(run, params, console)
        first, written = run.data.reference_log_probs, path.stat().st_mtime_ns
        attach_reference_log_probs(run, params, console)
        assert path.stat().st_mtime_ns == written, "the same parameters: read, not computed"
        other = jax.tree.map(lambda x: 1.5 * x, params)
        attach_reference_log_probs(run, other, console)
        assert first is not None and run.data.reference_log_probs is not None
        assert np.abs(run.data.reference_log_probs - first).max() > 1e-3
        path.write_text(path.read_text()[:-20])  # the process died while it wrote
        attach_reference_log_probs(run, params, console)
    np.testing.assert_array_equal(run.data.reference_log_probs, first)
