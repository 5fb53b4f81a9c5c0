"""The model in lmms-eval, which finds it by an entry point.

    lmms-eval --model qwen2_audio --model_args pretrained=DIRECTORY --tasks librispeech_test_clean

Its tasks choose their prompts by the model's name, and those for `qwen2_audio` have the language
tag that the base model needs. So this class takes that name, which without this package is
lmms-eval's own class for torch; `qa_jax` is another name of it, with the tasks' default prompts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from lmms_eval.api.model import lmms
from tqdm import tqdm

from qa_jax.api import load
from qa_jax.config import Dtype, JsonDict
from qa_jax.data.audio import AudioSource
from qa_jax.data.questions import instruction_prompt
from qa_jax.errors import InputError
from qa_jax.evaluate.answers import GREEDY
from qa_jax.generate import Request
from qa_jax.generate.requests import Clip

_IGNORED = {"device", "device_map", "use_cache", "max_batch_size"}
"""Options that lmms-eval passes to every model."""


def manifests() -> list[object]:
    """What lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    path = f"{__name__}.{QaJax.__name__}"
    return [ModelManifest(name, simple_class_path=path) for name in ("qa_jax", "qwen2_audio")]


class Instance(Protocol):
    """lmms-eval's request."""

    args: tuple[str, JsonDict, Callable[[object], list[AudioSource]], int, str, str]
    doc_id: int


class QaJax(lmms):
    """Answers lmms-eval's requests with continuous batching.

    Args:
        pretrained: a checkpoint of qa_jax, or a directory in Hugging Face's format.
        batch_size: answers that are generated together; "auto" for what memory has room for.
        simple_prompt: without a chat template, as for the base model; lmms-eval's name for it.
        dtype: as for `qa_jax.load`.
        capacity: the most tokens of a prompt with its answer.
        options: of lmms-eval that mean nothing here.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = "auto",
        simple_prompt: bool = False,
        dtype: Dtype | None = None,
        capacity: int | None = None,
        **options: object,
    ) -> None:
        super().__init__()
        for name in options:
            if name not in _IGNORED:
                raise InputError(f"--model_args {name}", "no such option", "see QaJax")
        num_slots = None if batch_size in ("auto", None) else int(batch_size)
        # Longer clips are several in one prompt, as in lmms-eval's own class.
        self._model = load(
            pretrained, dtype, long_audio="window", num_slots=num_slots, capacity=capacity
        )
        self._is_raw = simple_prompt

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The answers, in the requests' order; a clip that cannot be read has an empty one, and a
        warning."""
        index_of: dict[Request, int] = {}
        answers = [""] * len(requests)

        def asked() -> Iterator[Request]:
            for index, instance in enumerate(requests):
                try:
                    request = self._request(instance)
                    self._model.engine.check(request)
                except InputError as error:
                    warnings.warn(f"no answer to {instance.doc_id}: {error}", stacklevel=2)
                    continue
                index_of[request] = index
                yield request

        with tqdm(total=len(requests), desc="answering", disable=self.rank != 0) as bar:
            for answer in self._model.engine.run(asked()):
                index = index_of.pop(answer.request)
                answers[index] = answer.text
                text, settings, *_ = requests[index].args
                self.cache_hook.add_partial("generate_until", (text, settings), answer.text)
                bar.update(1)
        return answers

    def _request(self, instance: Instance) -> Request:
        text, settings, to_audio, doc_id, task, split = instance.args
        model, processor = self._model, self._model.require_processor()
        audio = to_audio(self.task_dict[task][split][doc_id])
        prompt = instruction_prompt([_samples(clip) for clip in audio], text, self._is_raw)
        ids, clips = processor.tokenize_clips(prompt.text, processor.load(prompt.audio))
        return Request(
            np.array(ids),
            [Clip.of(clip, model.config) for clip in clips],
            model.sampling_config(_settings(settings)),
            model.config,
            processor.tokenizer.decode,
        )

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not implemented: lmms-eval's audio tasks generate."""
        raise NotImplementedError("loglikelihood: tasks that generate are supported")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not implemented: its audio tasks have one round."""
        raise NotImplementedError("generate_until_multi_round: tasks of one round are supported")


def _settings(given: JsonDict) -> JsonDict:
    """lmms-eval's generation settings as `SamplingConfig`'s; greedy unless they sample."""
    until = given.get("until") or ()
    found: JsonDict = {
        "max_new_tokens": given.get("max_new_tokens", 256),
        "min_new_tokens": 1,
    }
    found["stop"] = (until,) if isinstance(until, str) else tuple(until)
    temperature = given.get("temperature") or 0.0
    if not given.get("do_sample", temperature > 0) or not temperature:
        return {**found, **GREEDY}
    return {**found, "temperature": temperature, "top_p": given.get("top_p") or 1.0}


def _samples(audio: AudioSource) -> AudioSource:
    """A clip of a data set: decoded samples, a decoder of torchcodec's, or the file's bytes."""
    if hasattr(audio, "get_all_samples"):
        found = audio.get_all_samples()
        return np.asarray(found.data, np.float32).mean(axis=0), int(found.sample_rate)
    if "array" in audio:
        return np.asarray(audio["array"], np.float32), int(audio["sampling_rate"])
    return audio["path"] if audio.get("bytes") is None else audio["bytes"]
