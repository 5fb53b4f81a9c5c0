"""Models of the Hugging Face hub: fetched, and checked against the hub's own checksums."""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qa_jax.checkpoint import TEXT_FILES
from qa_jax.errors import InputError

_SHA256 = re.compile("[0-9a-f]{64}")


def local(source: str | Path, weights: bool = True) -> Path:
    """The directory itself, or a hub id's files, downloaded where the hub's cache has not got them.

    Without `weights`, only the small files are fetched. Raises InputError for what is neither a
    directory nor a model that the hub gives.
    """
    path = Path(source)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", str(source)):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = str(source).partition("@")
    wanted = ["config.json", "adapter_config.json", *TEXT_FILES]
    if weights:
        wanted += ["*.safetensors", "model.safetensors.index.json"]
    try:
        found = snapshot_download(name, revision=revision or None, allow_patterns=wanted)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            source,
            f"no such directory, and the hub does not give it ({' '.join(str(error).split())})",
            "check the name and the network, or download it and name the directory",
        ) from None
    return Path(found)


def check_downloads(files: list[Path]) -> None:
    """Raises InputError for files that differ from what the hub said they are.

    The hub's cache names each large file by its SHA-256; a download into a plain directory notes
    it under .cache/huggingface. Files of neither kind have no checksum to be held against.
    """
    known = {file: expected for file in files if (expected := _expected(file))}
    with ThreadPoolExecutor(2) as pool:
        for file, found in zip(known, pool.map(_sha256, known), strict=True):
            if found != known[file]:
                raise InputError(
                    file,
                    f"SHA-256 {found[:16]}..., the hub says {known[file][:16]}...",
                    "delete it and download it again",
                )


def _expected(file: Path) -> str | None:
    if _SHA256.fullmatch(file.resolve().name):
        return file.resolve().name
    note = file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    # Three lines: the commit, the checksum, the time.
    lines = note.read_text().split() if note.is_file() else []
    return lines[1] if len(lines) > 1 and _SHA256.fullmatch(lines[1]) else None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
