"""Results of compilations, kept for the next plan."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from qa_jax.errors import InputError
from qa_jax.plan import compiled
from qa_jax.plan.compiled import compile_cached


def lowered(n: int) -> jax.stages.Lowered:
    return jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((n, n), jnp.float32))


def test_a_program_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_cached(lowered(8), False, tmp_path, {"devices": [1]})
    assert first.text and first.argument_bytes == 8 * 8 * 4 and not first.problem
    calls: list[bool] = []

    def compile_or_problem(_: object, quick: bool) -> tuple[None, str]:
        calls.append(quick)
        return None, "needs 17G of 16G"

    monkeypatch.setattr(compiled, "compile_or_problem", compile_or_problem)
    assert compile_cached(lowered(8), False, tmp_path, {"devices": [1]}) == first
    assert calls == []
    # Another program, effort, or machine is another result; one that does not fit is kept, too.
    for n, quick, devices in [(9, False, [1]), (8, True, [1]), (8, False, [2])]:
        for _ in range(2):
            again = compile_cached(lowered(n), quick, tmp_path, {"devices": devices})
            assert again.problem == "needs 17G of 16G" and again.text == ""
    assert calls == [False, True, False]
    compile_cached(lowered(8), False)
    assert len(calls) == 4


def test_a_damaged_or_impossible_cache(tmp_path: Path) -> None:
    compile_cached(lowered(8), False, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    assert compile_cached(lowered(8), False, tmp_path).text
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: cannot be created .*; choose another --cache"):
        compile_cached(lowered(8), False, tmp_path / "file")
