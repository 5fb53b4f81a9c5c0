"""Sizes of files and functions, the layout of the tests, and open types."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ["qa_jax", "tools", "tests", "benchmarks"]
# Tests of several modules at once.
END_TO_END = {
    "parity",
    "sharding",
    "jobs",
    "fuzz",
    "storage",
    "browser",
    "clients",
    "test_types.py",
    "test_structure.py",
}
# Not the forward pass: initialization, gradients, FLOPs, the kernels that `dispatch.py` chooses,
# the KV cache and int8 weights.
NOT_FORWARD = {"params.py", "gradients.py", "flops.py", "chunked.py", "splash.py", "cudnn.py"}
NOT_FORWARD |= {"cache.py", "cached.py", "quantization.py"}


def modules(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", CODE)
def test_files_and_functions_are_short(folder: str) -> None:
    found = list(modules(folder))
    assert found
    for path in found:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


def test_the_forward_pass_reads_in_one_sitting() -> None:
    paths = [p for p in modules("qa_jax/model") if p.name not in NOT_FORWARD]
    assert len(paths) > 8
    assert sum(len(p.read_text().splitlines()) for p in paths) <= 1100


def test_tests_mirror_the_modules() -> None:
    sources = {
        Path(root, p.relative_to(ROOT / folder)).with_suffix("").as_posix()
        for root, folder in (("", "qa_jax"), ("convert_weights", "tools/convert_weights"))
        for p in modules(folder)
    }
    for path in modules("tests"):
        test = path.relative_to(ROOT / "tests")
        if test.name.startswith("test_") and test.parts[0] not in END_TO_END:
            module = test.with_name(test.stem.removeprefix("test_")).as_posix()
            assert module in sources, f"{test} is the test of no module"


def test_open_types_are_rare() -> None:
    lines = [line for p in modules("qa_jax", "tools") for line in p.read_text().splitlines()]
    assert sum(bool(re.search(r": Any\b|Any\]", line)) for line in lines) < 45
