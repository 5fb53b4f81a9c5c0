"""Predicted times, read from programs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from qa_jax.parallel.hardware import Chip
from qa_jax.plan import find_target
from qa_jax.plan.cycles import kernel_flops, predict, seconds_by_kind
from tests.plan.configs import needs_libtpu

CHIP = Chip(flops=1e12, memory=2**30, bandwidth=1e11, ici_bandwidth=1e6, clock=1e9)


def estimated(cycles: int) -> str:
    return f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'


PRODUCT = 'metadata={op_name="jit(train_step)/decoder/while/body/mlp/dot_general"}, ' + estimated(
    2_000_000
)
PROGRAM = f"""HloModule jit_train_step, is_scheduled=true

%fused_product (a: bf16[8,8]) -> bf16[8,8] {{
  %a = bf16[8,8]{{1,0}} parameter(0)
  %inner = bf16[8,8]{{1,0}} multiply(%a, %a), {estimated(10**9)}
  ROOT %d = bf16[8,8]{{1,0}} convolution(%inner, %a), dim_labels=bf_io->bf
}}

%fused_move (b: bf16[8,8]) -> bf16[8,8] {{
  %b = bf16[8,8]{{1,0}} parameter(0)
  ROOT %t = bf16[8,8]{{0,1}} transpose(%b), dimensions={{1,0}}
}}

%fused_start (c: bf16[1000]) -> bf16[4000] {{
  %c = bf16[1000]{{0}} parameter(0)
  ROOT %g = bf16[4000]{{0}} all-gather(%c), channel_id=7, replica_groups={{{{0,1,2,3}}}}
}}

%fused_done (e: bf16[1000]) -> bf16[4000] {{
  %e = bf16[1000]{{0}} parameter(0)
  ROOT %h = bf16[4000]{{0}} all-gather(%e), channel_id=7, replica_groups={{{{0,1,2,3}}}}
}}

%condition (s: (s32[], bf16[8,8])) -> pred[] {{
  %s = (s32[], bf16[8,8]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}}

%body (s.1: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {{
  %s.1 = (s32[], bf16[8,8]{{1,0}}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %x = bf16[8,8]{{1,0}} get-tuple-element(%s.1), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i.1, %one)
  %kernel = bf16[1] custom-call(%x), custom_call_target="tpu_custom_call", kernel={{
"name":"{{}}"
}}}}
  %product = bf16[8,8]{{1,0}} fusion(%x), kind=kOutput, calls=%fused_product, {PRODUCT}
  ROOT %out = (s32[], bf16[8,8]{{1,0}}) tuple(%next, %product)
}}

ENTRY %main (p: bf16[8,8]) -> bf16[8,8] {{
  %p = bf16[8,8]{{1,0}} parameter(0)
  %zero = s32[] constant(0)
  %first = (s32[], bf16[8,8]{{1,0}}) tuple(%zero, %p)
  %loop = (s32[], bf16[8,8]{{1,0}}) while(%first), condition=%condition, body=%body
  %y = bf16[8,8]{{1,0}} get-tuple-element(%loop), index=1
  %start = bf16[4000]{{0}} fusion(%q), kind=kCustom, calls=%fused_start
  %moved = bf16[8,8]{{0,1}} fusion(%y), kind=kLoop, calls=%fused_move, {estimated(1_000_000)}
  %done = bf16[4000]{{0}} fusion(%start), kind=kCustom, calls=%fused_done
  %sum = f32[1000]{{0}} all-reduce(%r), channel_id=8, replica_groups={{{{0,1,2,3}}}}
  ROOT %last = bf16[8,8]{{1,0}} add(%moved, %moved), {estimated(3_000_000)}
}}
"""


def test_the_parts_of_a_program() -> None:
    """Loops count as often as they run, what is inside fusions not at all; a collective counts
    for what is not computed meanwhile."""
    operations = predict(PROGRAM, CHIP)
    seconds = seconds_by_kind(operations)
    assert seconds["products"] == pytest.approx(5 * 2e-3)
    assert seconds["copies"] == pytest.approx(1e-3) and seconds["vector"] == pytest.approx(3e-3)
    # 6,000 bytes take 6 ms, of which 1 ms is hidden; 4,000 bytes, sent twice by 3 of 4, 6 ms.
    assert seconds["collectives"] == pytest.approx(5e-3 + 6e-3)
    assert sum(seconds.values()) == pytest.approx(sum(x.seconds for x in operations))
    costliest = operations[0]
    assert (costliest.name, costliest.kind, costliest.num_executions) == ("product", "products", 5)
    assert costliest.source == "decoder/mlp/dot_general"
    assert [x.seconds for x in operations] == sorted((x.seconds for x in operations), reverse=True)
    assert [x.name for x in predict(PROGRAM, CHIP, loops_only=True)] == ["product", "kernel"]


def test_operations_of_attention_kernels() -> None:
    """Two products of the forward kernel; narrow heads and causal masks."""
    layouts = "{{{mask}, bf16[2,4,256,{d}]{{3,2,1,0}}, bf16[2,4,256,{d}]{{3,2,1,0}}{more}}}"

    def kernel(part: str, d: int, more: str = "") -> float:
        operands = layouts.format(mask="s8[1,2,2]{2,1,0}", d=d, more=more)
        return kernel_flops(
            f"%splash_mha_{part}_x.1 = bf16[2,4,256,{d}] custom-call(%q), "
            f"operand_layout_constraints={operands}, frontend_attributes={{}}"
        )

    product = 2 * 2 * 4 * 256 * 256 * 128
    assert kernel("fwd", 128) == kernel("fwd", 64) == 2 * product
    assert kernel("dq", 128) == 3 * product and kernel("dkv", 128) == 4 * product
    assert kernel("fwd", 128, ", s32[256,128]{1,0}") == 2 * product * 3 / 4
    # A dkv kernel that also gives the gradient of the queries: five products.
    fused = "%splash_mha_dkv_x.1 = (bf16[2,4,256,128], bf16[2,4,256,128], bf16[1,2,4,256,128])"
    operands = layouts.format(mask="s8[1,2,2]{2,1,0}", d=128, more="")
    line = (
        f"{fused} custom-call(%q), operand_layout_constraints={operands}, frontend_attributes={{}}"
    )
    assert kernel_flops(line) == 5 * product
    assert kernel_flops("%other = f32[1] custom-call(%q)") == 0


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:1x1", "v6e:1x1"])
def test_a_large_product_takes_its_operations_at_the_peak(topology: str) -> None:
    """The clock of the table: a large product's cycles take 85 to 100 % of the peak's rate."""
    target = find_target(topology)
    device, chip = target.devices[0], target.chip
    place = jax.sharding.SingleDeviceSharding(device)
    m, k, n = 4096, 4096, 8192
    a = jax.ShapeDtypeStruct((m, k), jnp.bfloat16, sharding=place)
    b = jax.ShapeDtypeStruct((k, n), jnp.bfloat16, sharding=place)
    text = jax.jit(lambda a, b: a @ b).lower(a, b).compile().as_text()
    seconds = seconds_by_kind(predict(text or "", chip))
    assert set(filter(seconds.get, seconds)) <= {"products", "copies"}
    ideal = 2 * m * k * n / chip.flops
    assert 0.85 <= ideal / seconds["products"] <= 1.01
