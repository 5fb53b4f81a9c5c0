"""One self-contained directory on disk: what a model is, its tokenizer, and its steps.

    DIR/config.yaml             the model's configuration; of an adapter alone, adapter.yaml
    DIR/tokenizer.json, ...     the tokenizer's files, where there is one
    DIR/generation_config.json  how to answer by default, where that is known
    DIR/checksums/STEP.json     sizes and checksums of a training step's files
    DIR/checkpoints/STEP/       parameters and, for a training run, the optimizer's state

A training run's output and a converted model are both such a directory. Orbax saves and restores;
`qa_jax.stored` reads and writes the same files piece by piece.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import yaml
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from qa_jax.config import ModelConfig, parse, read_yaml, to_dict
from qa_jax.errors import InputError
from qa_jax.model import Adapter, Params, Qwen2Audio, declarations, flatten, nest
from qa_jax.parallel import barrier, first_process, sharding

CONFIG_FILE = "config.yaml"
ADAPTER_FILE = "adapter.yaml"
STEPS = "checkpoints"
SUMS = "checksums"
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
    _create(Path(directory), CONFIG_FILE, to_dict(config), text_source)


def _create(
    directory: Path, name: str, raw: dict[str, Any], text_source: str | Path | None
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    copy_text_files(text_source, directory)
    partial = directory / f".{name}.partial"
    partial.write_text(yaml.safe_dump(raw, sort_keys=False))
    os.replace(partial, directory / name)


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
    model: Qwen2Audio, mesh: Mesh | None = None, dtype: Any = jnp.float32
) -> Params:
    """The parameters' shapes, types and places: on the mesh, or on one device without one.

    `dtype` is that of parameters for which the model declares none.
    """
    flat = {}
    for path, d in declarations(model).items():
        place = (
            SingleDeviceSharding(jax.local_devices()[0])
            if mesh is None
            else sharding(mesh, d.axes, d.shape, "/".join(path))
        )
        flat[path] = jax.ShapeDtypeStruct(d.shape, d.dtype or dtype, sharding=place)
    return nest(flat)


def _by_layer(path: Any, value: Any) -> Any:
    """Large stacked parameters are stored in chunks no larger than a layer, so that
    `qa_jax.stored` can read one without the rest."""
    options = ocp.options.ArrayOptions.Saving.StorageOptions
    stacked = any(getattr(k, "key", None) == "layers" for k in path)
    if not stacked or getattr(value, "nbytes", 0) < 2**26:
        return None
    return options(chunk_byte_size=value.nbytes // value.shape[0], shard_axes=(0,))


class Checkpoints:
    """The steps of a checkpoint directory.

    Args:
        directory: the checkpoint directory.
        keep: latest steps that are kept; None for all.
        keep_every: steps that are multiples of this are kept, too.
    """

    def __init__(self, directory: str | Path, keep: int | None = None, keep_every: int = 0) -> None:
        policies = ocp.training.preservation_policies
        kept = [policies.LatestN(keep) if keep else policies.PreserveAll()]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        self.directory = Path(directory).absolute()
        context = ocp.Context()
        context.array.saving.scoped_storage_options_creator = _by_layer
        self._steps = ocp.training.Checkpointer(
            self.directory / STEPS,
            save_decision_policy=ocp.training.save_decision_policies.AnySavePolicy([]),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
            context=context,
        )
        self._pending: int | None = None

    def latest(self) -> int | None:
        """The newest complete step."""
        latest = self._steps.latest
        return None if latest is None else latest.step

    def all(self) -> list[int]:
        """All complete steps, the newest last."""
        return sorted(c.step for c in self._steps.checkpoints)

    def find(self, step: int | None = None) -> int:
        """The latest complete step, or `step`; raises InputError where there is none such."""
        found = self.all()
        if not found:
            raise InputError(
                self.directory, "has no complete checkpoint", "let training save a step first"
            )
        if step is not None and step not in found:
            raise InputError(self.directory, f"has no step {step}", f"choose from {found}")
        return found[-1] if step is None else step

    def save(self, step: int, params: Params, **state: Any) -> None:
        """Saves in the background; a step appears under its name only when it is complete.

        Raises InputError where this one, or the one before, cannot be written.
        """
        with self._writing(step):
            self._steps.save_checkpointables_async(step, {"params": params, **state}, force=True)
        self._pending = step

    @contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            self._settle()
            yield
        except (OSError, ValueError, RuntimeError) as error:
            good = [s for s in self.all() if s != step]
            last = f"the last good one is step {good[-1]}" if good else "there is none before"
            raise InputError(
                self.directory / STEPS,
                f"a checkpoint cannot be written ({' '.join(str(error).split())}); {last}",
                "free disk space and run the same command again: it goes on",
            ) from error

    def _settle(self) -> None:
        """Waits for what is being saved, and notes the checksums of its files."""
        self._steps.wait()
        if self._pending is not None and first_process():
            _write_sums(self.directory, self._pending)
            for path in (self.directory / SUMS).glob("*.json"):
                if not (self.directory / STEPS / path.stem).exists():
                    path.unlink()
        self._pending = None

    def saved(self, step: int) -> dict[str, Any]:
        """What a step holds: trees of shapes and types, nothing read."""
        return self._steps.checkpointables_metadata(step).metadata

    def restore(self, step: int, **abstract: Any) -> dict[str, Any]:
        """The named trees of a step, with the shapes, types and places that `abstract` gives."""
        try:
            return self._steps.load_checkpointables(step, abstract)
        except Exception as error:  # whatever the libraries below make of a damaged file
            path = self.directory / STEPS / str(step)
            text = " ".join(str(error).split())
            raise InputError(path, f"cannot be restored ({text})", "use another step") from error

    def restore_latest(self, **abstract: Any) -> tuple[int, dict[str, Any]] | None:
        """The newest step whose files are whole, as `restore` gives it; None where none was saved.

        One with a damaged file is named in a warning and set aside, in DIR/damaged. Raises
        InputError where all are.
        """
        steps = self.all()
        for step in reversed(steps):
            try:
                _check_sums(self.directory, step)
            except InputError as error:
                warnings.warn(f"{error}: taking the checkpoint before", stacklevel=2)
                self._set_aside(step)
            else:
                return step, self.restore(step, **abstract)
        if steps:
            raise InputError(self.directory, "no checkpoint is whole", "name another train.output")
        return None

    def _set_aside(self, step: int) -> None:
        barrier("damaged")
        if first_process():
            aside = self.directory / "damaged"
            aside.mkdir(exist_ok=True)
            shutil.rmtree(aside / str(step), ignore_errors=True)
            os.replace(self.directory / STEPS / str(step), aside / str(step))
            (self.directory / SUMS / f"{step}.json").unlink()
        barrier("set aside")
        self._steps.reload()

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        with self._writing(self._pending or 0):
            pass

    def close(self) -> None:
        """Waits for what is being saved, then lets go of the directory."""
        self.wait()
        self._steps.close()


def _write_sums(directory: Path, step: int) -> None:
    """Notes size and CRC-32 of every file of a step."""
    sums = _sums(directory / STEPS / str(step))
    (directory / SUMS).mkdir(exist_ok=True)
    partial = directory / SUMS / f".{step}.partial"
    partial.write_text(json.dumps(sums))
    os.replace(partial, directory / SUMS / f"{step}.json")


def _sums(root: Path) -> dict[str, list[int]]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(_sum, files)
    return {str(f.relative_to(root)): s for f, s in zip(files, found, strict=True)}


def _sum(file: Path) -> list[int]:
    size = crc = 0
    with file.open("rb") as stream:
        while block := stream.read(2**24):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _check_sums(directory: Path, step: int) -> None:
    """Raises InputError naming the first file of a step that is not as it was saved.

    A step without checksums, because the run was killed before they were taken, passes as it is.
    """
    path = directory / SUMS / f"{step}.json"
    if not path.is_file():
        return
    root = directory / STEPS / str(step)
    found = _sums(root)
    for name, expected in json.loads(path.read_text()).items():
        if found.get(name) != expected:
            cause = "is missing" if name not in found else "is damaged"
            raise InputError(root / name, cause)


def find_step(directory: str | Path, step: int | None = None) -> int:
    """See `Checkpoints.find`."""
    steps = Checkpoints(directory)
    found = steps.find(step)
    steps.close()
    return found


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
    found = steps.find(step)
    abstract = abstract_params(Qwen2Audio(config), mesh)
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


def is_adapter(directory: str | Path) -> bool:
    """Whether this holds an adapter of ours alone, without the model it belongs to."""
    return (Path(directory) / ADAPTER_FILE).is_file()


class AdapterCard(NamedTuple):
    """What an adapter's directory says of it.

    Attributes:
        base: where the model that it belongs to came from: a directory, or a hub id.
        scales: see `Adapter`.
        model: that model's configuration.
    """

    base: str
    scales: dict[tuple[str, ...], float]
    model: ModelConfig


def create_adapter(
    directory: str | Path, card: AdapterCard, text_source: str | Path | None
) -> None:
    """Starts an adapter's directory, as `create` starts a model's."""
    raw = {
        "base": card.base,
        "scales": {"/".join(path): scale for path, scale in card.scales.items()},
        "model": to_dict(card.model),
    }
    _create(Path(directory), ADAPTER_FILE, raw, text_source)


def read_adapter(directory: str | Path) -> AdapterCard:
    """What `create_adapter` wrote."""
    path = Path(directory) / ADAPTER_FILE
    raw = read_yaml(path)
    scales = {tuple(name.split("/")): float(x) for name, x in raw.get("scales", {}).items()}
    return AdapterCard(raw.get("base", ""), scales, parse(ModelConfig, raw.get("model", {}), path))


def save_adapter(directory: str | Path, adapter: Adapter, config: ModelConfig, base: str) -> None:
    """Saves an adapter alone: `adapter.yaml` and its matrices as the parameters of step 0.

    Args:
        config: of the model it belongs to.
        base: where that model came from, for people and for PEFT.
    """
    save_params(directory, adapter.params)
    create_adapter(directory, AdapterCard(base, adapter.scales, config), None)


def load_adapter(directory: str | Path, step: int | None = None) -> tuple[Adapter, AdapterCard]:
    """An adapter's latest step (or `step`), and what its directory says of it."""
    card = read_adapter(directory)
    steps = Checkpoints(directory)
    found = steps.find(step)
    device = SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        steps.saved(found)["params"],
    )
    params = steps.restore(found, params=abstract)["params"]
    steps.close()
    return Adapter(params, card.scales), card
