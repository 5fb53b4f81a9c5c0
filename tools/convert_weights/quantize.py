"""A checkpoint with linear layers in 8 bits, for inference."""

from __future__ import annotations

from convert_weights.hub import resolve_source
from qa_jax import checkpoint
from qa_jax.errors import InputError
from qa_jax.paths import PathLike, as_path
from qa_jax.trees import flatten_dict


def quantize(source: PathLike, dest: PathLike) -> int:
    """Writes a checkpoint whose kernels of linear layers are int8, and returns its bytes.

    Args:
        source: a qa_jax or Hugging Face directory, or a hub id; other parameters keep their dtypes.
        dest: the new directory.

    Raises:
        InputError: the source is int8 already, or the new directory is not empty.
    """
    directory = resolve_source(str(source))
    if as_path(dest).exists() and any(as_path(dest).iterdir()):
        raise InputError(dest, "is not empty", "name a new directory")
    if checkpoint.read_model_config(directory).weights == "int8":
        raise InputError(source, "its weights are int8 already", "use it as it is")
    config, params = checkpoint.load_weights(directory, weights="int8")
    checkpoint.save_params(dest, params)
    checkpoint.create(dest, config, directory)
    return sum(x.nbytes for x in flatten_dict(params).values())
