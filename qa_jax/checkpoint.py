"""One self-contained directory on disk: what a model is, its tokenizer, and its steps.

    DIR/config.yaml             the model's configuration
    DIR/tokenizer.json, ...     the tokenizer's files, where there is one
    DIR/generation_config.json  how to answer by default, where that is known
    DIR/checkpoints/STEP/       parameters and, for a training run, the optimizer's state

A training run's output and a converted model are both such a directory.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import yaml
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from qa_jax.config import ModelConfig, parse, read_yaml, to_dict
from qa_jax.errors import InputError
from qa_jax.model import Params, Qwen2Audio, declarations, flatten, nest
from qa_jax.parallel import sharding

CONFIG_FILE = "config.yaml"
STEPS = "checkpoints"
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "sentencepiece.model",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
"""What travels with the weights, in either direction and from run to run."""


def is_checkpoint(directory: str | Path) -> bool:
    """Whether this is a directory of ours (and not, for example, Hugging Face's)."""
    return (Path(directory) / CONFIG_FILE).is_file()


def create(directory: str | Path, config: ModelConfig, text_source: str | Path | None) -> None:
    """Starts a checkpoint directory: its configuration, and the text files found at the source."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    copy_text_files(text_source, directory)
    written = yaml.safe_dump(to_dict(config), sort_keys=False)
    partial = directory / f".{CONFIG_FILE}.partial"
    partial.write_text(written)
    os.replace(partial, directory / CONFIG_FILE)


def copy_text_files(source: str | Path | None, directory: Path) -> None:
    """Copies the tokenizer's and generation's files that the source has."""
    if source is None or Path(source).resolve() == directory.resolve():
        return
    for name in TEXT_FILES:
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, directory / name)


def read_config(directory: str | Path) -> ModelConfig:
    """The model configuration of a checkpoint directory."""
    path = Path(directory) / CONFIG_FILE
    return parse(ModelConfig, read_yaml(path), path)


def abstract_params(
    config: ModelConfig, mesh: Mesh | None = None, dtype: Any = jnp.float32
) -> Params:
    """The parameters' shapes, types and places: on the mesh, or on one device without one."""
    flat = {}
    for path, d in declarations(Qwen2Audio(config)).items():
        place = (
            SingleDeviceSharding(jax.local_devices()[0])
            if mesh is None
            else sharding(mesh, d.axes, d.shape, "/".join(path))
        )
        flat[path] = jax.ShapeDtypeStruct(d.shape, dtype, sharding=place)
    return nest(flat)


class Checkpoints:
    """The steps of a checkpoint directory.

    Args:
        directory: the checkpoint directory.
        keep: latest steps that are kept; None for all.
    """

    def __init__(self, directory: str | Path, keep: int | None = None) -> None:
        policies = ocp.training.preservation_policies
        self.directory = Path(directory).absolute()
        self._steps = ocp.training.Checkpointer(
            self.directory / STEPS,
            save_decision_policy=ocp.training.save_decision_policies.AnySavePolicy([]),
            preservation_policy=policies.LatestN(keep) if keep else policies.PreserveAll(),
            cleanup_tmp_directories=True,
        )

    def latest(self) -> int | None:
        """The newest complete step."""
        latest = self._steps.latest
        return None if latest is None else latest.step

    def save(self, step: int, params: Params, **state: Any) -> None:
        """Saves in the background; a step appears under its name only when it is complete."""
        self._steps.save_checkpointables_async(step, {"params": params, **state}, force=True)

    def saved(self, step: int) -> dict[str, Any]:
        """What a step holds: trees of shapes and types, nothing read."""
        return self._steps.checkpointables_metadata(step).metadata

    def restore(self, step: int, **abstract: Any) -> dict[str, Any]:
        """The named trees of a step, with the shapes, types and places that `abstract` gives."""
        try:
            return self._steps.load_checkpointables(step, abstract)
        except (ValueError, FileNotFoundError, KeyError) as error:
            path = self.directory / STEPS / str(step)
            raise InputError(path, f"cannot be restored ({error})", "use another step") from error

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._steps.wait()

    def close(self) -> None:
        """Waits for what is being saved, then lets go of the directory."""
        self._steps.close()


def load_params(
    directory: str | Path,
    config: ModelConfig,
    mesh: Mesh | None = None,
    dtype: Any = None,
    step: int | None = None,
) -> Params:
    """Parameters of the latest step (or of `step`), each device reading its own part.

    `dtype` None keeps the type that each was saved in.
    """
    steps = Checkpoints(directory)
    found = steps.latest() if step is None else step
    if found is None:
        raise InputError(directory, "has no complete checkpoint", "let training save a step first")
    abstract = abstract_params(config, mesh)
    if dtype is None:
        flat_saved = flatten(steps.saved(found)["params"])
        abstract = nest(
            {
                path: jax.ShapeDtypeStruct(x.shape, flat_saved[path].dtype, sharding=x.sharding)
                for path, x in flatten(abstract).items()
            }
        )
    else:
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding), abstract
        )
    params = steps.restore(found, params=abstract)["params"]
    steps.close()
    return params


def save_params(directory: str | Path, params: Params) -> None:
    """Saves parameters alone, as step 0 of a directory that `create` started."""
    steps = Checkpoints(directory)
    steps.save(0, params)
    steps.close()
