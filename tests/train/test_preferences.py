"""Preferences: pairs from manifests, one loss however its reference comes, and what it teaches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax import load
from qa_jax.cli import main
from qa_jax.config import DPOConfig, RunConfig
from qa_jax.data import read_manifest
from qa_jax.errors import InputError
from qa_jax.train import train
from qa_jax.train.metrics import read_metrics
from qa_jax.train.objectives.dpo import dpo_loss
from qa_jax.train.run import make_objective, make_run_step, prepare
from qa_jax.train.state import initial_state
from tests.train.runs import config, losses, stopping_after

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def pairs(sounds: Path, tmp_path: Path) -> Path:
    """Pairs of every form: voice chat, two clips, no clip, the short form, ms-swift's."""

    def clip(i: int) -> dict:
        return {"type": "audio", "audio": str(sounds / f"{i}.wav")}

    better, worse = {"chosen": "a man"}, {"rejected": "the light in the kitchen"}
    user = {"role": "user", "content": [clip(0)]}
    rows = [
        {"messages": [user], **better, **worse},
        {
            "messages": [{"role": "user", "content": [clip(1), clip(2)]}],
            "chosen": [{"role": "assistant", "content": "seven"}],
            "rejected": [{"role": "assistant", "content": "three plus four is seven"}],
        },
        {"messages": [{"role": "user", "content": "what is three plus four"}], **better, **worse},
        {"audio": str(sounds / "3.wav"), "prompt": "turn on", **better, **worse},
        {
            "messages": [
                {"role": "user", "content": "<audio>what"},
                {"role": "assistant", "content": "a man"},
            ],
            "audios": [str(sounds / "4.wav")],
            "rejected_response": "a woman",
        },
        {
            "messages": [user, {"role": "assistant", "content": "the fox"}, user],
            **better,
            **worse,
        },
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def preferring(settings: dict, pairs: Path, init: Path, *more: str) -> RunConfig:
    chosen = ["--train.objective=dpo", f"--data.train={pairs}", f"--train.init_from={init}"]
    return config(settings, *chosen, "--optimizer.warmup_steps=0", *more)


def test_every_form_of_a_pair(pairs: Path) -> None:
    records = read_manifest(pairs)
    for record in records:
        for prompt in record.completions():
            assert sum(span.is_target for span in prompt.spans) == 1
        assert len(record.completions()) == 2
    short, swift, turns = records[3], records[4], records[5]
    assert [p.spans[-1].text for p in short.completions()] == [
        "a man<|endoftext|>",
        "the light in the kitchen<|endoftext|>",
    ]
    answers = [s.text for p in swift.completions() for s in p.spans if s.is_target]
    assert answers == ["a man<|im_end|>", "a woman<|im_end|>"]
    assert "the fox" in turns.prompt.text and len(turns.prompt.audio) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": None}, "has no rejected completion"),
        ({"chosen": ""}, "has no chosen completion"),
        ({"rejected": "a man"}, "chosen and rejected are the same"),
        ({"messages": []}, "messages do not end with the user"),
        (
            {"messages": [{"role": "assistant", "content": "x"}]},
            "messages do not end with the user",
        ),
    ],
)
def test_what_is_no_pair_is_refused(change: dict, message: str, pairs: Path) -> None:
    row = json.loads(pairs.read_text().splitlines()[0]) | change
    pairs.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=rf"pairs\.jsonl:1: {message}"):
        read_manifest(pairs)


def test_settings_that_cannot_be(
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
            prepare(preferring(settings, pairs, tiny_checkpoint, *more))
    with pytest.raises(InputError, match="hinge has none"):
        DPOConfig("hinge", label_smoothing=0.1)


def test_a_batch_holds_each_clip_once(settings: dict, pairs: Path, tiny_checkpoint: Path) -> None:
    run = prepare(preferring(settings, pairs, tiny_checkpoint, "--data.buckets={204: 8}"))
    batch = run.data.batch(0)
    assert batch.tokens.shape[1] == 16 and int((batch.num_frames > 0).sum()) == 7
    audio = run.processor.audio_token_id
    better, worse = np.split(batch.tokens[0], 2)
    assert [(row == audio).sum() for row in better] == [(row == audio).sum() for row in worse]
    # The prompts are the same, and no prompt's token counts.
    weights = np.split(batch.loss_weights[0], 2)
    for i in range(6):
        first = int(np.argmax(weights[0][i] > 0))
        np.testing.assert_array_equal(better[i, :first], worse[i, :first])
        assert first == int(np.argmax(weights[1][i] > 0)) > 0
    assert (batch.loss_weights[0][[6, 7, 14, 15]] == 0).all()


def test_it_learns_what_is_preferred(
    settings: dict, pairs: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """And the same losses, whether the reference is kept, stored, or the base of adapters."""
    runs = {
        "in_memory": [],
        "precomputed": ["--dpo.reference=precomputed"],
        "accumulated": ["--optimizer.grad_accum_steps=2", "--data.buckets={204: 4}"],
    }
    curves = {}
    for name, more in runs.items():
        more = ["--data.buckets={204: 8}", *more, f"--train.output_dir={tmp_path / name}"]
        more += [f"--data.eval={pairs}"] if name == "precomputed" else []
        train(preferring(settings, pairs, tiny_checkpoint, *more))
        rows = [r for r in read_metrics(tmp_path / name / "metrics.jsonl")]
        curves[name] = [r["loss"] for r in rows if "loss" in r]
        assert curves[name][0] == pytest.approx(np.log(2), rel=1e-5)
        for held_out in (r for r in rows if "eval_loss" in r):
            assert held_out["eval_reward_accuracy"] == 1 and held_out["eval_reward_margin"] > 0
        assert any("eval_loss" in r for r in rows) == (name == "precomputed")
        last = [r for r in rows if "loss" in r][-1]
        assert last["reward_accuracy"] == 1 and last["loss"] < 0.5
        assert last["reward_margin"] == pytest.approx(
            last["reward_chosen"] - last["reward_rejected"], rel=1e-4
        )
    np.testing.assert_allclose(curves["precomputed"], curves["in_memory"], rtol=1e-4)
    np.testing.assert_allclose(curves["accumulated"], curves["in_memory"], rtol=1e-4)


def test_pairs_are_evaluated(
    pairs: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line, as the objective sees them."""
    kept = tmp_path / "kept.jsonl"
    command = ["evaluate", "--checkpoint", str(tiny_checkpoint), str(pairs), "--output", str(kept)]
    assert main([*command, "--batch-size", "4"]) == 0
    assert "6 pairs  logp accuracy" in capsys.readouterr().out
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [r["source"] for r in rows] == [f"{pairs}:{i}" for i in range(1, 7)]
    qa = load(tiny_checkpoint)
    assert qa.processor is not None
    for row, record in zip(rows, read_manifest(pairs), strict=True):
        waves = qa.processor.load(record.prompt.audio)
        for name, prompt in zip(("chosen", "rejected"), record.completions(), strict=True):
            ids, answer = qa.processor.tokenize_with_targets(prompt, [w.size for w in waves])
            batch = qa.processor.collate([ids], waves, "right")
            scores = jax.nn.log_softmax(jnp.asarray(qa.logits(batch)[0]))
            wanted = np.flatnonzero(answer)
            expected = sum(float(scores[i - 1, ids[i]]) for i in wanted)
            assert row[name] == pytest.approx(expected, rel=1e-4)
            assert row[f"{name}_tokens"] == len(wanted)


def test_a_stored_reference_is_read_again_and_checked(
    settings: dict, pairs: Path, tiny_checkpoint: Path
) -> None:
    run = preferring(settings, pairs, tiny_checkpoint, "--dpo.reference=precomputed")
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


@pytest.mark.eight_devices
@pytest.mark.parametrize("adapted", [False, True])
def test_a_mesh_gives_the_same(
    settings: dict, pairs: Path, tiny_checkpoint: Path, adapted: bool
) -> None:
    """Groups of rows with their own clips, each with both answers."""
    more = ["--data.buckets={204: 8}", "--optimizer.eps=1e-4"]
    if adapted:
        more += [
            '--lora.target_modules=["decoder/"]',
            "--lora.base_dtype=float32",
            "--optimizer.peak_lr=3e-2",
        ]
    found = []
    for sizes, devices in (((1, 1, 1), 1), ((1, 4, 2), 8)):
        settings["mesh"] = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
        run = prepare(preferring(settings, pairs, tiny_checkpoint, *more), jax.devices()[:devices])
        with jax.set_mesh(run.mesh):
            state = initial_state(run)
            ref_params = None if adapted else jax.tree.map(jnp.copy, state.params)
            step = jax.jit(make_run_step(run.config, run.models, run.objective, run.optimizer))
            rows = []
            for _ in range(3):
                state, metrics = step(state, run.data.batch(0), ref_params)
                rows.append({k: float(v) for k, v in metrics.items()})
        found.append(rows)
    for one, many in zip(*found, strict=True):
        for name in ("loss", "reward_margin", "logp_accuracy", "kl", "grad_norm"):
            assert many[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name


def test_losses_are_their_formulas() -> None:
    """With what TRL has no like of: smoothed labels, the better answer's likelihood, padding."""
    rng = np.random.default_rng(0)
    log_probs = -rng.random((8, 5))
    wanted = rng.random((8, 5)) < 0.6
    wanted[:, 0] = True
    wanted[[3, 7]] = False  # the last pair only fills the batch
    log_probs[~wanted] = 0
    reference = -3 * rng.random(8)
    ratio = log_probs.sum(1) - reference
    count = np.maximum(wanted.sum(1), 1)
    margin = (ratio[:4] - ratio[4:])[:3]

    def log_sigmoid(x: np.ndarray) -> np.ndarray:
        return -np.log1p(np.exp(-x))

    def found(**how: Any) -> float:
        values = (jnp.asarray(x) for x in (log_probs, reference, wanted))
        out = dpo_loss(DPOConfig(**how), *values)
        return float(out.loss / out.weight)

    smoothed = -0.8 * log_sigmoid(0.3 * margin) - 0.2 * log_sigmoid(-0.3 * margin)
    assert found(beta=0.3, label_smoothing=0.2) == pytest.approx(smoothed.mean(), rel=1e-5)
    mean = (ratio / count)[:4] - (ratio / count)[4:]
    each = -log_sigmoid(0.3 * mean[:3])
    assert found(beta=0.3, length_normalized=True) == pytest.approx(each.mean(), rel=1e-5)
    likelihood = -(log_probs.sum(1) / count)[:3]
    both = -log_sigmoid(0.1 * margin) + 0.5 * likelihood
    assert found(sft_weight=0.5) == pytest.approx(both.mean(), rel=1e-5)
    # Groups hold their better answers first, each on its own.
    order = [0, 1, 4, 5, 2, 3, 6, 7]
    values = (jnp.asarray(x[order]) for x in (log_probs, reference, wanted))
    out = dpo_loss(DPOConfig(), *values, num_batch_shards=2)
    assert float(out.loss / out.weight) == pytest.approx(found(), rel=1e-6)


def test_the_reference_gets_no_gradient(settings: dict, pairs: Path, tiny_checkpoint: Path) -> None:
    run = prepare(preferring(settings, pairs, tiny_checkpoint, "--data.buckets={204: 8}"))
    objective = make_objective(run.config, run.models, 1)
    params = initial_state(run).params
    batch = jax.tree.map(lambda x: x[0], run.data.batch(0))

    def loss(policy: Any, reference: Any) -> jax.Array:
        return objective.loss(policy, batch, reference, None).loss

    gradients = jax.jit(jax.grad(loss, (0, 1)))(params, params)
    largest = [max(float(jnp.abs(g).max()) for g in jax.tree.leaves(x)) for x in gradients]
    assert largest[0] > 0 and largest[1] == 0
