"""Downloads from the Hugging Face hub, verified by the hub's checksums."""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qa_jax.checkpoint import TOKENIZER_FILES
from qa_jax.errors import InputError
from qa_jax.paths import as_path, scheme_of

_SHA256 = re.compile("[0-9a-f]{64}")


def resolve_source(source: str | Path, weights: bool = True) -> Path:
    """The directory itself, which may be in object storage, or the directory of a hub id,
    downloaded unless it is in the cache.

    Without `weights`, only small files are downloaded. Raises InputError for a hub id that cannot
    be downloaded.
    """
    if scheme_of(source):
        return as_path(source)
    path = Path(source)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", str(source)):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = str(source).partition("@")
    patterns = ["config.json", "adapter_config.json", *TOKENIZER_FILES]
    if weights:
        patterns += ["*.safetensors", "model.safetensors.index.json"]
    try:
        found = snapshot_download(name, revision=revision or None, allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            source,
            f"no such directory, and the hub's download fails ({' '.join(str(error).split())})",
            "check the name and the network, or download it and name the directory",
        ) from None
    return Path(found)


def check_downloads(files: list[Path]) -> None:
    """Raises InputError for files whose SHA-256 is not the hub's.

    The hub's cache names each large file by its SHA-256; a download into a plain directory records
    it under .cache/huggingface. Other files have no checksum and are not checked.
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
