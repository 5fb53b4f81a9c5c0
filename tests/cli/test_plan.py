"""`qa-jax plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qa_jax import cli
from tests.plan.configs import needs_libtpu


@needs_libtpu
def test_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("preset: demo\ndata: {buckets: {504: 8}, packed_length: 256}\n")
    arguments = ["plan", "--config", str(recipe), "--model.dtype", "bfloat16"]
    arguments += ["--cache", str(tmp_path / "cache")]
    assert cli.main([*arguments, "--topology", "v5p:2x2x1", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["compiled"] and plan["devices"] == 4
    assert plan["bytes_per_chip"]["parameters"] > 0 and plan["hbm_bytes_per_chip"] == 95 * 2**30
    assert 0 < plan["mfu_bound"] < 1 and plan["bound"] in plan["seconds"]
    # The prediction is longer than the bound of its matrix products, and tells what takes long.
    predicted = sum(plan["predicted"].values())
    assert predicted > plan["seconds"]["compute"] and 0 < plan["mfu_predicted"] < plan["mfu_bound"]
    assert plan["predicted"]["products"] > 0 and plan["predicted"]["kernels"] > 0
    assert len(plan["costliest"]) == 10 and plan["costliest"][0]["source"]
    assert plan["parameters"] > 0 and plan["flops_per_chip"] > 0 and plan["compile_seconds"] > 0
    # Planned again, with another efficiency: from the cache, kernels twice as long.
    again = [*arguments, "--topology", "v5p:2x2x1", "--json", "--kernel-efficiency"]
    assert cli.main([*again, "0.25"]) == 0
    slower = json.loads(capsys.readouterr().out)
    assert slower["compile_seconds"] == plan["compile_seconds"]
    assert slower["predicted"]["kernels"] == pytest.approx(2 * plan["predicted"]["kernels"])
    assert cli.main([*again, "0"]) == 2
    assert "0.0 is no fraction of the peak" in capsys.readouterr().err
    assert cli.main([*arguments, "--topology", "h100:8"]) == 0
    assert "fits (analytic)" in capsys.readouterr().out
    decode = [*arguments, "--topology", "v5p:2x2x1", "--job", "decode", "--data.max_tokens", "256"]
    assert cli.main([*decode, "--quick", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["compiled"] and plan["shapes"]["num_tokens"] == 1
    assert plan["predicted"] == {}
    # Keys and values of eight slots, of 256 tokens and as many to come, in all layers.
    assert plan["bytes_per_chip"]["cache"] == 2 * 2 * 8 * 512 * 4 * 32 * 2
    assert plan["network_bytes_per_chip"]["all-gather"] > 0
