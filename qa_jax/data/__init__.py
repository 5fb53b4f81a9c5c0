"""Audio files and shards, tokenizers, the chat template, the processor, manifests, batches."""

from qa_jax.data.audio import AudioSource, clip_num_samples, load_audio
from qa_jax.data.batch import TrainBatch
from qa_jax.data.chat import Message, Prompt, apply_chat_template
from qa_jax.data.loader import TrainDataset
from qa_jax.data.manifest import Record, read_manifest
from qa_jax.data.processor import Batch, Processor
from qa_jax.data.tokenizer import ByteLevelBPE, SentencePiece, Tokenizer, load_tokenizer

__all__ = [
    "AudioSource",
    "Batch",
    "ByteLevelBPE",
    "Message",
    "Processor",
    "Prompt",
    "Record",
    "SentencePiece",
    "Tokenizer",
    "TrainBatch",
    "TrainDataset",
    "apply_chat_template",
    "clip_num_samples",
    "load_audio",
    "load_tokenizer",
    "read_manifest",
]
