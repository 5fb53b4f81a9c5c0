"""Forms of datasets, one module each: whatever it is, a dataset is read as lines of a manifest.

- a path to JSON lines: our own, transformers' and OpenAI's messages, ms-swift's, NeMo's manifests
- "shards/*.tar", "shards/{000..009}.tar" or one .tar: WebDataset
- "hf://OWNER/NAME:CONFIG@SPLIT", a directory of Parquet files, or one: a Hugging Face dataset
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qa_jax.data.readers.base import Line
from qa_jax.data.readers.hf_datasets import is_hf_dataset, read_hf_dataset
from qa_jax.data.readers.jsonl import read_jsonl
from qa_jax.data.readers.webdataset import read_webdataset
from qa_jax.paths import PathLike, is_remote

__all__ = ["Line", "read_dataset"]


def read_dataset(path: PathLike) -> Iterator[Line]:
    """The lines of a dataset of any form, by its path.

    Raises InputError if it cannot be read; a line that cannot be is its own error.
    """
    if str(path).endswith(".tar"):
        return read_webdataset(str(path))
    if is_hf_dataset(str(path)) or (not is_remote(path) and Path(path).is_dir()):
        return read_hf_dataset(str(path))
    return read_jsonl(path)
