"""What goes in: audio files, tokenizers, the chat form, the processor, manifests, the loader."""

from qa_jax.data.audio import clip_samples, load_audio
from qa_jax.data.chat import Prompt, render
from qa_jax.data.loader import TrainBatch, TrainData
from qa_jax.data.manifest import Record, read_manifest
from qa_jax.data.processor import Batch, Processor
from qa_jax.data.tokenizer import ByteLevelBPE, SentencePiece, Tokenizer, load_tokenizer

__all__ = [
    "Batch",
    "ByteLevelBPE",
    "Processor",
    "Prompt",
    "Record",
    "SentencePiece",
    "Tokenizer",
    "TrainBatch",
    "TrainData",
    "clip_samples",
    "load_audio",
    "load_tokenizer",
    "read_manifest",
    "render",
]
