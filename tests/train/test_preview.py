"""The page of what training hears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from qa_jax.cli import main
from qa_jax.config import AugmentConfig, DataConfig
from qa_jax.data import Processor, TrainDataset
from qa_jax.model.frontend import LogMel
from qa_jax.train.preview import heard_records

SETTINGS = {"speed": [0.8, 1.2], "noise_prob": 1.0, "time_masks": 2}


def test_the_clips_are_those_of_the_step(manifest: Path, processor: Processor) -> None:
    config = DataConfig(train=str(manifest), buckets={204: 4}, max_tokens=400)
    data = TrainDataset(config, processor, augment=AugmentConfig(speed=(0.8, 1.2), noise_prob=1.0))
    records = list(heard_records(data, LogMel(80), num_records=6, num_draws=2))
    assert [r.source.rpartition(":")[2] for r in records] == ["1", "3", "5", "7", "9", "11"]
    first, two = records[0], records[1]
    assert "".join(text for text, weight in first.texts[0] if weight) == (
        "three plus four is seven<|im_end|>"
    )
    assert any(text.startswith("<|AUDIO|> x ") for text, _ in first.texts[0])
    assert [len(clips) for clips in two.clips] == [2, 2, 2]
    plain, *draws = (clips[0] for clips in first.clips)
    raw = processor.load(data.examples[0].record.prompt.audio, base=str(manifest.parent))[0]
    np.testing.assert_array_equal(plain.waveform, raw)
    loaded = data.load(0, epoch=1)
    assert loaded is not None and draws[1].waveform.size == loaded.waveforms[0].size
    assert np.abs(draws[1].waveform - loaded.waveforms[0]).max() > 1e-4, "noise was added"
    assert draws[0].waveform.tobytes() != draws[1].waveform.tobytes()


def test_data_preview(settings: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    settings["data"]["buckets"] = {204: 4}
    settings["augment"] = SETTINGS
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    output = tmp_path / "page"
    command = ["data", "preview", "--config", str(recipe), "--output", str(output)]
    assert main([*command, "--records", "2", "--draws", "3", "--augment.gain_db=[-3, 3]"]) == 0
    assert capsys.readouterr().out.strip() == f"open {output / 'index.html'}"
    page = (output / "index.html").read_text()
    names = [f"000_{draw}_0" for draw in range(4)]
    assert all(f"{name}.png" in page and (output / f"{name}.png").is_file() for name in names)
    assert "<mark" in page and "manifest.jsonl:1" in page
    sizes = {soundfile.info(output / f"{name}.wav").frames for name in names}
    assert len(sizes) == 4, "each draw has its own speed"
