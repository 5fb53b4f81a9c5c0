"""A predicted step time: the cycles that the TPU compiler estimates, read from its program.

The compiler's static model, not a measurement: no contention, ideal prefetching. It ranks programs;
as seconds it is a lower bound. Kernels and collectives have no estimate in the program. Kernels are
counted from their operations at a given efficiency. A collective takes its bytes over the bandwidth
of the chip's links, less what is computed between its start and its end in the schedule. A loop
whose number of iterations depends on data (the loss skips blocks without targets) counts once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from qa_jax.parallel.hardware import Chip
from qa_jax.plan.collectives import channel_of, parse_collective
from qa_jax.plan.program import (
    ENTRY,
    called_computations,
    computations,
    execution_counts,
    parse_instruction,
)

KERNEL_EFFICIENCY = 0.5
"""Fraction of the peak at which attention kernels are counted: an assumption, measured nowhere."""
KINDS = ("products", "kernels", "vector", "copies", "collectives")
"""What a step's time is spent on: matrix products; attention kernels; other computations; data
movement within a chip; what of the collectives is not hidden behind computations."""

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_PRODUCTS = {"convolution", "dot"}
_MOVES = {
    *("copy", "transpose", "reshape", "bitcast", "slice", "dynamic-slice", "dynamic-update-slice"),
    *("concatenate", "pad", "broadcast", "parameter", "constant", "tuple", "get-tuple-element"),
}
_MATMULS = {"fwd": 2, "dq": 3, "dkv": 4, "fused": 5}
"""Matrix products of a splash attention kernel, by the part of its name after `splash_mha_`; of a
`dkv` kernel with a third result, the gradient of the queries, five."""


class Operation(NamedTuple):
    """An instruction of the program.

    Attributes:
        name: in the program.
        kind: of KINDS.
        seconds: in one step.
        num_executions: in one step.
        source: the part of the model that it comes from.
    """

    name: str
    kind: str
    seconds: float
    num_executions: int
    source: str


def predict(
    text: str,
    chip: Chip,
    kernel_efficiency: float = KERNEL_EFFICIENCY,
    loops_only: bool = False,
) -> list[Operation]:
    """The operations of a compiled TPU program that take time, the costliest first.

    Args:
        text: of the compiled module.
        chip: with its clock.
        kernel_efficiency: see KERNEL_EFFICIENCY.
        loops_only: leave out what is executed once for the whole program.
    """
    bodies = computations(text)
    counts = execution_counts(bodies)
    kinds = {name: _kind_of_body(lines) for name, lines in bodies.items()}
    fused = {
        called
        for lines in bodies.values()
        for line in lines
        if " fusion(" in line
        for called in called_computations(line)
    }
    found: list[Operation] = []
    for name, lines in bodies.items():
        if counts[name] and name not in fused and not (loops_only and name == ENTRY):
            own = [_operation(line, counts[name], chip, kinds, kernel_efficiency) for line in lines]
            found += filter(None, own)
            found += _exposed(lines, own, bodies, counts[name], chip, name)
    return sorted(found, key=lambda operation: -operation.seconds)


def seconds_by_kind(operations: Iterable[Operation]) -> dict[str, float]:
    """Seconds of a step by kind, in the order of KINDS."""
    total = dict.fromkeys(KINDS, 0.0)
    for operation in operations:
        total[operation.kind] += operation.seconds
    return total


def _operation(
    line: str, count: int, chip: Chip, kinds: dict[str, str], kernel_efficiency: float
) -> Operation | None:
    """An instruction's time in a step; None if it takes none that is known."""
    parsed = parse_instruction(line)
    if parsed is None:
        return None
    name, _, opcode = parsed
    cycles = _CYCLES.search(line)
    if opcode == "custom-call" and "tpu_custom_call" in line:
        seconds = kernel_flops(line) / (chip.flops * kernel_efficiency)
        return Operation(name, "kernels", seconds * count, count, _source(line))
    if cycles is None:
        return None
    kind = "copies" if opcode in _MOVES else "vector"
    if opcode in _PRODUCTS:
        kind = "products"
    elif opcode == "fusion":
        kind = next((kinds[called] for called in called_computations(line)), "vector")
    seconds = int(cycles.group(1)) / chip.clock
    return Operation(name, kind, seconds * count, count, _source(line))


def _kind_of_body(lines: list[str]) -> str:
    """What a fusion of these instructions is."""
    opcodes = {parsed[2] for line in lines if (parsed := parse_instruction(line))}
    if opcodes & _PRODUCTS:
        return "products"
    return "copies" if opcodes <= _MOVES else "vector"


def kernel_flops(line: str) -> float:
    """Operations of a splash attention kernel, from its operands; 0 for any other kernel.

    Heads narrower than the matrix unit's 128 columns count as 128. Of a causal mask, the blocks on
    and below the diagonal count.
    """
    name = re.search(r"%?splash_mha_(fwd|dq|dkv)_", line)
    operands = re.search(r"operand_layout_constraints=\{(.*?)\}, frontend", line, re.DOTALL)
    if name is None or operands is None:
        return 0.0
    arrays = re.findall(r"(?:bf16|f32)\[([\d,]+)\]", operands.group(1))
    shapes = [tuple(map(int, dims.split(","))) for dims in arrays]
    *batch, length, width = shapes[0]  # the queries; the keys follow
    flops = 2.0 * math.prod(batch) * length * shapes[1][-2] * max(width, 128)
    # Only masks that are computed from positions need those of the queries, (length, 128).
    is_causal = re.search(rf"s32\[{length},128\]", operands.group(1)) is not None
    blocks = re.search(r"s8\[\d+,(\d+),\d+\]", operands.group(1))
    if is_causal and blocks is not None:
        flops *= 0.5 + 0.5 / int(blocks.group(1))
    part = name.group(1)
    results = line.partition(" custom-call(")[0]
    is_fused = part == "dkv" and results.count("bf16[") > 2
    return flops * _MATMULS["fused" if is_fused else part]


def _exposed(
    lines: list[str],
    operations: list[Operation | None],
    bodies: dict[str, list[str]],
    count: int,
    chip: Chip,
    computation: str,
) -> list[Operation]:
    """What of a computation's collectives is not hidden behind its other operations.

    A collective lasts from the first instruction that has a part of it to the last one, and is
    hidden by what these and those between them compute. Two that overlap may be hidden by the same
    computation.
    """
    spans: dict[str, tuple[int, int, Operation]] = {}
    starts: dict[str, str] = {}
    for i, line in enumerate(lines):
        inner = [(name, x) for name in called_computations(line) for x in bodies.get(name, ())]
        if " fusion(" not in line:
            inner = []
        for name, part in [(computation, line), *inner]:
            found = parse_collective(part, name, count)
            if found is None:
                continue
            channel = channel_of(part)
            own = parse_instruction(line)
            if own is not None:
                starts[own[0]] = channel
            seconds = found.sent / chip.ici_bandwidth
            new = Operation(found.kind, "collectives", seconds, count, _scope(found.source))
            first, _, one = spans.get(channel, (i, i, new))
            spans[channel] = (first, i, one)
        done = re.search(r"-done\(%?([\w.\-]+)", line)
        if done and done.group(1) in starts:
            channel = starts[done.group(1)]
            spans[channel] = (spans[channel][0], i, spans[channel][2])
    exposed = []
    for first, last, one in spans.values():
        hidden = sum(x.seconds for x in operations[first : last + 1] if x is not None)
        if one.seconds > hidden:
            exposed.append(one._replace(seconds=one.seconds - hidden))
    return exposed


def _source(line: str) -> str:
    found = _SOURCE.search(line)
    return _scope(found.group(1)) if found else ""


def _scope(name: str) -> str:
    """The part of the model that an operation's name tells, without JAX's own wrappers."""
    wrappers = r"/(while|body|closed_call|checkpoint|shard_map|rematted_computation)\b"
    return re.sub(wrappers, "", name.removeprefix("jit(train_step)/"))
