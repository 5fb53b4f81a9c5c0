"""Reports of manifests."""

from __future__ import annotations

from pathlib import Path

from qa_jax.data import Processor
from qa_jax.data.check import check_manifest


def test_report_of_a_good_manifest(manifest: Path, processor: Processor) -> None:
    report = check_manifest(manifest, processor)
    assert not report.problems and len(report.num_tokens) == 12 and len(report.seconds) == 10
