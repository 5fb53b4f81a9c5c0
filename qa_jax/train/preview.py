"""What training hears: clips as they are and as some epochs change them, and the text's weights."""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from qa_jax.config import HOP_LENGTH, SAMPLE_RATE, AugmentConfig, num_frames
from qa_jax.data import TrainDataset
from qa_jax.data.examples import Example, LoadedExample, load_example
from qa_jax.errors import InputError
from qa_jax.model.frontend import LogMel
from qa_jax.train.augment import augment_waveform, mask_log_mel
from qa_jax.typing import Float

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color-scheme: light dark }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top }
img { display: block; width: 300px; height: 130px; image-rendering: pixelated }
audio { display: block; width: 300px; height: 32px }
mark { background: #8fd19e; color: #000 }
pre { white-space: pre-wrap; max-width: 60rem }
"""


class Heard(NamedTuple):
    """A clip as the encoder is given it.

    Attributes:
        waveform: what can be listened to; without SpecAugment's masks.
        log_mel: what the encoder reads.
    """

    waveform: Float[np.ndarray, " S"]
    log_mel: Float[np.ndarray, "F M"]


class HeardRecord(NamedTuple):
    """A record as training reads it.

    Attributes:
        source: "file:line".
        texts: of each completion, stretches of text with their weight in the loss.
        clips: of each draw, its clips; the first draw is without augmentation.
    """

    source: str
    texts: list[list[tuple[str, float]]]
    clips: list[list[Heard]]


def heard_records(
    data: TrainDataset, log_mel: LogMel, num_records: int, num_draws: int
) -> Iterator[HeardRecord]:
    """Records evenly spaced over a dataset, each as the first epochs hear it."""
    hear = jax.jit(_hear, static_argnums=(0, 1))
    count = min(num_records, len(data.examples))
    for index in (i * len(data.examples) // count for i in range(count)):
        example = data.examples[index]
        plain = load_example(example, data.config, data.processor, room=0)
        plain = plain._replace(seeds=[np.zeros(2, np.uint32)] * len(plain.waveforms))
        loaded = [data.load(index, epoch) for epoch in range(num_draws)]
        draws = [(AugmentConfig(), plain)]
        draws += [(data.augmentation.config, x) for x in loaded if x is not None]
        yield HeardRecord(
            example.record.source,
            [_stretches(data, *completion) for completion in plain.completions],
            [_clips(hear, config, log_mel, example, draw) for config, draw in draws],
        )


def _hear(
    config: AugmentConfig, log_mel: LogMel, waveform: jax.Array, frames: jax.Array, seed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    waveform = augment_waveform(config, waveform, frames, seed)
    return waveform, mask_log_mel(config, log_mel(waveform), frames, seed)


def _clips(
    hear: Callable[..., tuple[jax.Array, jax.Array]],
    config: AugmentConfig,
    log_mel: LogMel,
    example: Example,
    loaded: LoadedExample,
) -> list[Heard]:
    clips = []
    for waveform, seed in zip(loaded.waveforms, loaded.seeds, strict=True):
        padded = np.zeros((1, example.bucket * HOP_LENGTH), np.float32)
        padded[0, : waveform.size] = waveform
        frames = np.array([num_frames(waveform.size)], np.int32)
        heard, features = hear(config, log_mel, padded, frames, seed[None])
        clips.append(
            Heard(np.asarray(heard[0, : waveform.size]), np.asarray(features[0, : frames[0]]))
        )
    return clips


def _stretches(data: TrainDataset, ids: list[int], weights: list[float]) -> list[tuple[str, float]]:
    """Neighbouring tokens of one weight as text; the placeholders of a clip as one."""
    processor = data.processor
    found = []
    for (weight, is_audio), group in itertools.groupby(
        zip(ids, weights, strict=True), key=lambda x: (x[1], x[0] == processor.audio_token_id)
    ):
        tokens = [token for token, _ in group]
        text = processor.tokenizer.decode(tokens[:1] if is_audio else tokens, False)
        found.append((f"{text} x {len(tokens)}" if is_audio else text, weight))
    return found


def write_page(records: Iterator[HeardRecord], directory: str | Path) -> Path:
    """Writes a page with pictures and sounds, and returns its path.

    Raises InputError if matplotlib is not installed.
    """
    try:
        from matplotlib.image import imsave
    except ImportError:
        raise InputError("matplotlib", "not installed", 'pip install "qa_jax[demo]"') from None
    import soundfile

    output = Path(directory)
    output.mkdir(parents=True, exist_ok=True)
    lines = ["<!doctype html><meta charset=utf-8><title>What training hears</title>"]
    lines.append(f"<style>{_STYLE}</style><h1>What training hears</h1>")
    lines.append("<p>Marked text counts in the loss.</p>")
    for i, record in enumerate(records):
        lines.append(f"<h2>{html.escape(record.source)}</h2>")
        for text in record.texts:
            lines.append(f"<pre>{''.join(_marked(*stretch) for stretch in text)}</pre>")
        for draw, clips in enumerate(record.clips):
            for k, clip in enumerate(clips):
                name = f"{i:03d}_{draw}_{k}"
                imsave(output / f"{name}.png", clip.log_mel.T, origin="lower", vmin=-1, vmax=2)
                soundfile.write(output / f"{name}.wav", np.clip(clip.waveform, -1, 1), SAMPLE_RATE)
                title = f"epoch {draw - 1}" if draw else "as it is"
                seconds = clip.waveform.size / SAMPLE_RATE
                lines.append(
                    f'<figure><img src="{name}.png" alt="log-mel, {title}">'
                    f'<audio controls src="{name}.wav"></audio>'
                    f"<figcaption>{title}, {seconds:.2f} s</figcaption></figure>"
                )
    page = output / "index.html"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def _marked(text: str, weight: float) -> str:
    escaped = html.escape(text)
    if not weight:
        return escaped
    return f'<mark title="weight {weight:g}">{escaped}</mark>'
