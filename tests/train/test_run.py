"""Preparing a run: settings that cannot be combined."""

from __future__ import annotations

from pathlib import Path

import pytest

from qa_jax.config import DPOConfig, RunConfig
from qa_jax.errors import InputError
from qa_jax.train import train
from qa_jax.train.run import prepare
from tests.runs import config, dpo_config

pytestmark = pytest.mark.usefixtures("one_device")


DECODER = '--lora.target_modules=["decoder/.*_proj", "projector"]'


def lora(settings: dict, init: Path, *more: str) -> RunConfig:
    chosen = [DECODER, "--lora.rank=4", "--lora.base_dtype=float32", f"--train.init_from={init}"]
    return config(settings, *chosen, *more)


def test_another_model_does_not_resume(settings: dict) -> None:
    train(config(settings, "--train.steps=1"))
    with pytest.raises(InputError, match="contains a run of another model"):
        train(config(settings, "--model.audio.encoder_layers=1"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            '--lora.target_modules=["decoder/embed_tokens"]',
            "'decoder/embed_tokens' matches nothing",
        ),
        ('--lora.target_modules=["("]', "is no regular expression"),
        ("--train.init_from=", "needs a base model; name it with train.init_from"),
        ("--train.ema_decay=1", "is not in"),
    ],
)
def test_bad_lora_settings_are_refused(
    override: str, message: str, settings: dict, tiny_checkpoint: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(lora(settings, tiny_checkpoint, override))


def test_bad_dpo_settings_are_refused(
    settings: dict, pairs: Path, manifest: Path, tiny_checkpoint: Path
) -> None:
    for more, message in (
        ([f"--data.train={manifest}"], "has 1 completion\\(s\\), train.objective needs 2"),
        (["--train.objective=sft"], "has 2 completion\\(s\\), train.objective needs 1"),
        (["--data.packed_length=256"], "pairs are not packed"),
        (["--train.init_from="], "dpo starts from a model"),
        (["--data.max_tokens=20"], "tokens are over data.max_tokens = 20"),
        (["--train.length_exponent=-1"], "is for sft"),
    ):
        with pytest.raises(InputError, match=message):
            prepare(dpo_config(settings, pairs, tiny_checkpoint, *more))
    with pytest.raises(InputError, match="hinge has none"):
        DPOConfig("hinge", label_smoothing=0.1)
