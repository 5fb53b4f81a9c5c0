"""Paths that a user gives: local ones, and those in object storage (gs://BUCKET/...).

Every such path goes through `as_path`: `pathlib.Path("gs://b/x")` would be a local directory "gs:".
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qa_jax.errors import InputError

if TYPE_CHECKING:
    AnyPath = Path
else:
    AnyPath = os.PathLike
"""A `pathlib.Path`, or etils' `epath.Path` with the same methods for gs://."""
PathLike = str | os.PathLike[str]

_PACKAGES = {"gs": "qa_jax[gcs]", "s3": "s3fs"}
_SCHEME = re.compile(r"([a-z][a-z0-9+.\-]+)://")


def cache_home() -> Path:
    """The user's cache directory of this package."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "qa_jax")


def scheme_of(path: object) -> str:
    """The scheme of a URL ("gs", "s3"); empty for a local path."""
    match = _SCHEME.match(str(path))
    return match.group(1) if match and match.group(1) != "file" else ""


def as_path(path: PathLike) -> AnyPath:
    """A path of a file or directory to read or write.

    Raises InputError for object storage other than gs://, which Orbax cannot write.
    """
    text = os.fspath(path)
    scheme = scheme_of(text)
    if not scheme:
        return Path(text.removeprefix("file://"))
    if scheme != "gs":
        raise InputError(
            text, f"{scheme}:// is not supported here", "name a local directory or gs://BUCKET/..."
        )
    from etils import epath

    _filesystem("gs")  # names the missing package
    return epath.Path(text)


def join(base: PathLike, name: str) -> str:
    """`name` relative to a directory; as it is if it is absolute or a URL."""
    if scheme_of(name) or name.startswith("file://"):
        return name.removeprefix("file://")
    if scheme_of(base):
        return name if name.startswith("/") else f"{os.fspath(base).rstrip('/')}/{name}"
    return str(Path(base) / name)


def is_remote(path: object) -> bool:
    """Whether this is a URL of object storage rather than a local path."""
    return bool(scheme_of(path))


def read_bytes(path: PathLike) -> bytes:
    """A whole file, local or in any object storage, in one request.

    Raises OSError as `open` does.
    """
    if not is_remote(path):
        return Path(path).read_bytes()
    return _filesystem(scheme_of(path)).cat_file(os.fspath(path))


def write_whole(path: AnyPath, content: str | bytes) -> None:
    """Writes a file so that it is never seen half: renamed when it is complete, as an object
    in storage, which cannot be renamed, appears by itself."""
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(data)
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def file_size(path: AnyPath) -> int:
    """Bytes of a file, local or in gs://, whose paths know their length by another name."""
    found: Any = path.stat()
    return int(found.length if is_remote(path) else found.st_size)


def read_range(path: PathLike, start: int, end: int) -> bytes:
    """Bytes of a file from `start` to `end`, or to its end if that comes first."""
    if is_remote(path):
        system = _filesystem(scheme_of(path))
        return system.cat_file(os.fspath(path), start=start, end=end)
    with Path(path).open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def parent(path: PathLike) -> str:
    """The directory of a file."""
    if not is_remote(path):
        return str(Path(path).parent)
    return os.fspath(path).rpartition("/")[0]


def upload(local: Path, remote: AnyPath) -> None:
    """Copies the files below a local directory."""
    for path in local.rglob("*"):
        if path.is_file():
            target = remote / path.relative_to(local).as_posix()
            target.write_bytes(path.read_bytes())


def remove_tree(directory: AnyPath) -> None:
    """Deletes a directory and everything below it."""
    if is_remote(directory):
        _filesystem(scheme_of(directory)).rm(os.fspath(directory), recursive=True)
    else:
        shutil.rmtree(directory)


def list_files(directory: PathLike) -> dict[str, dict[str, Any]]:
    """All files below a directory of object storage by relative path, with the storage's details,
    among them its checksums."""
    root = os.fspath(directory).rstrip("/")
    system = _filesystem(scheme_of(root))
    prefix = f"{system._strip_protocol(root)}/"
    return {
        name.removeprefix(prefix): details
        for name, details in system.find(root, detail=True).items()
        if details.get("type") == "file"
    }


@functools.cache
def _filesystem(scheme: str) -> Any:
    """fsspec's file system, without its cache of listings, which would hide new files."""
    import fsspec

    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        remedy = f'pip install "{_PACKAGES.get(scheme, scheme)}"'
        raise InputError(f"{scheme}://", f"not readable ({error})", remedy) from None
