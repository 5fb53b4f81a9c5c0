"""Parts of files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qa_jax.data import clip_num_samples, load_audio
from qa_jax.data.audio import clip_file
from qa_jax.data.stored import Segment, segment_name, split_segment
from qa_jax.errors import InputError


def test_names() -> None:
    assert segment_name("a.wav", 12.5, 4.5) == "a.wav#t=12.5,17"
    assert segment_name("a.wav", 3) == "a.wav#t=3"
    assert split_segment("a.wav#t=12.5,17") == ("a.wav", Segment(12.5, 17.0))
    assert split_segment("a.wav#t=3") == ("a.wav", Segment(3.0, None))
    assert split_segment("a #t.wav") == ("a #t.wav", Segment())


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_part_of_a_long_file(tmp_path: Path, suffix: str) -> None:
    """Over the model's 30 s in all; the part is decoded as it is in the whole."""
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / f"long.{suffix}", 0.1 * rng.standard_normal(40 * 8_000), 8_000)
    whole, _ = soundfile.read(tmp_path / f"long.{suffix}", dtype="float32")
    name = f"long.{suffix}#t=31.5,33.25"
    found = load_audio(name, base=str(tmp_path))
    assert found.size == clip_num_samples(name, str(tmp_path)) == 28_000
    part = whole[int(31.5 * 8_000) : int(33.25 * 8_000)]
    np.testing.assert_allclose(found, load_audio(part, sampling_rate=8_000), atol=1e-6)
    copied, rate = soundfile.read(io.BytesIO(clip_file(name, str(tmp_path))), dtype="float32")
    assert rate == 8_000
    np.testing.assert_allclose(copied, part, atol=2e-7 * 2)


def test_times_outside_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    assert load_audio(tmp_path / "a.wav#t=0.5,1.01").size == 8_000, "manifests round times"
    for read in (load_audio, clip_num_samples):
        with pytest.raises(InputError, match=r"a\.wav#t=0\.5,2: the file ends at 1\.000 s"):
            read(tmp_path / "a.wav#t=0.5,2")
        with pytest.raises(InputError, match=r"the file ends at 1\.000 s"):
            read(tmp_path / "a.wav#t=1")
        with pytest.raises(InputError, match="ends before it starts"):
            read(tmp_path / "a.wav#t=0.5,0.5")
        with pytest.raises(InputError, match=r"b\.wav#t=1: no such file"):
            read(tmp_path / "b.wav#t=1")
