"""Training through an index: the same batches, without opening clips or parsing records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qa_jax.data import Processor, examples
from qa_jax.data.index import has_index, index_path
from qa_jax.data.index_builder import build_index
from qa_jax.errors import InputError
from qa_jax.train import train
from tests.data.datasets import make_dataset
from tests.runs import config, losses


def test_the_batches_are_the_same(
    manifest: Path, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [make_dataset(manifest, processor, packed_length=n) for n in (0, 300)]
    assert not has_index(manifest)
    summary = build_index(manifest, processor)
    assert summary.num_records == summary.num_measured == 12 and not summary.errors
    monkeypatch.setattr(examples, "clip_num_samples", None)  # no clip's header is read
    for expected, packed in zip(plain, (0, 300), strict=True):
        found = make_dataset(manifest, processor, packed_length=packed)
        assert list(found.examples) == list(expected.examples)
        for step in range(2 * expected.steps_per_epoch):
            for x, y in zip(found.batch(step), expected.batch(step), strict=True):
                np.testing.assert_array_equal(x, y)
    assert len(make_dataset({str(manifest): 2.5}, processor).examples) == 30


def test_training_through_an_index(
    settings: dict, processor: Processor, tmp_path: Path, one_device: None
) -> None:
    for name in ("plain", "indexed"):
        if name == "indexed":
            build_index(settings["data"]["train"], processor)
        settings["train"] |= {"steps": 3, "output_dir": str(tmp_path / name)}
        train(config(settings))
    assert losses(tmp_path / "plain") == losses(tmp_path / "indexed")
    with pytest.raises(InputError, match="its records are not those"):
        settings["train"] |= {"steps": 4, "output_dir": str(tmp_path / "plain")}
        train(config(settings))


def test_what_has_changed_is_named(
    manifest: Path, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(manifest, processor)
    with pytest.raises(InputError, match=r"was made with another data\.long_audio; run again"):
        make_dataset(manifest, processor, long_audio="truncate")
    with pytest.raises(InputError, match=r"was made with another data\.prompt"):
        make_dataset(manifest, processor, prompt="what")
    with monkeypatch.context() as patch:
        patch.setitem(processor.__dict__, "fingerprint", "another")
        with pytest.raises(InputError, match="was made with another tokenizer"):
            make_dataset(manifest, processor)
    data, whole = make_dataset(manifest, processor), manifest.read_bytes()
    manifest.write_bytes(whole.replace(b"turn on", b"turn up"))
    with pytest.raises(InputError, match=r"manifest\.jsonl:(5|11): has changed since it was"):
        for step in range(data.steps_per_epoch):
            data.batch(step)
    manifest.write_bytes(whole + b'{"text": "one"}\n')
    with pytest.raises(InputError, match=r"manifest\.jsonl has changed since; run again"):
        make_dataset(manifest, processor)


def test_unusable_records(processor: Processor, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    rows = ['{"text": "fine"}'] * 3 + ['{"audio": "absent.wav", "text": "x"}', "{"]
    path.write_text("\n".join(rows) + "\n")
    summary = build_index(path, processor)
    assert summary.num_records == 3 and len(summary.errors) == 2
    assert f"{path}:4" in summary.errors[0] and "absent.wav: no such file" in summary.errors[0]
    with pytest.raises(InputError, match=r"bad\.jsonl:4: .*absent\.wav: no such file"):
        make_dataset(path, processor)
    with pytest.warns(UserWarning, match=r"bad\.jsonl:[45]") as warned:
        data = make_dataset(path, processor, max_bad_records=2)
    assert len(warned) == 2 and len(data.examples) == 3


def test_other_datasets_have_no_index(processor: Processor, tmp_path: Path) -> None:
    assert not has_index("hf://owner/name") and not has_index("{000..001}.tar")
    with pytest.raises(InputError, match="no local file"):
        build_index(tmp_path / "none.jsonl", processor)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="contains no records"):
        build_index(tmp_path / "empty.jsonl", processor)
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"text": "one"}) + "\n")
    build_index(path, processor)
    (Path(index_path(path)) / "num_clips.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"num_clips\.npy: not readable"):
        make_dataset(path, processor)
