"""The collectives of a compiled program, read from its text."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from qa_jax.plan.program import computations, execution_counts, parse_instruction

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")


class Collective(NamedTuple):
    """A collective of the program.

    Attributes:
        kind: all-gather, all-reduce, reduce-scatter, all-to-all or collective-permute.
        sent: bytes sent by a device in one run of the program.
        num_executions: executions in one run.
        largest: bytes of its largest array.
        shape: shape of that array.
        dtype: its dtype as XLA writes it: f32, bf16, ...
        source: name of the operation that it belongs to.
    """

    kind: str
    sent: float
    num_executions: int
    largest: int
    shape: tuple[int, ...]
    dtype: str
    source: str


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled module's text, multiplied by loop trip counts.

    A loop without a constant trip count is counted once.
    """
    bodies = computations(text)
    counts = execution_counts(bodies)
    found: dict[str, Collective] = {}
    for name, lines in bodies.items():
        for line in lines if counts[name] else ():
            one = parse_collective(line, name, counts[name])
            if one is not None:
                # An asynchronous collective appears several times, with one channel id.
                found.setdefault(channel_of(line), one)
    return list(found.values())


def channel_of(line: str) -> str:
    """What identifies a collective: its channel id, or the whole instruction."""
    channel = re.search(r"channel_id=(\d+)", line)
    return channel.group(1) if channel else line


def bytes_by_collective(text: str) -> dict[str, int]:
    """Bytes sent by a device in one run of a compiled module, by kind of collective."""
    sent: Counter[str] = Counter()
    for collective in collectives(text):
        sent[collective.kind] += round(collective.sent)
    return dict(sent)


def parse_collective(line: str, computation: str, count: int) -> Collective | None:
    """The collective that an instruction is, executed `count` times; None for any other."""
    parsed = parse_instruction(line)
    if parsed is None:
        return None
    _, result, opcode = parsed
    kind = opcode.removesuffix("-start")
    if kind not in _KINDS:
        return None
    arrays = _ARRAY.findall(result)
    sizes = [_size(*array) for array in arrays]
    if not sizes:
        return None
    is_start = opcode.endswith("-start")
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        # On TPUs, a fusion of an all-reduce and the slice that a device keeps.
        kind, is_start = "reduce-scatter", True
    # Async *-start ops return (input, output); all-reduce may have several arrays.
    whole = max(sizes) if is_start and kind != "all-reduce" else sum(sizes)
    n = _group_size(line)
    fraction = (n - 1) / n if n > 1 else 0.0
    sent = {
        "all-gather": whole * fraction,
        "all-reduce": 2 * whole * fraction,
        "reduce-scatter": (whole if is_start else whole * n) * fraction,
        "all-to-all": whole * fraction,
        "collective-permute": float(whole),
    }[kind]
    source = re.search(r'op_name="([^"]*)"', line)
    dtype, dims = arrays[sizes.index(max(sizes))]
    shape = tuple(int(n) for n in dims.split(",") if n)
    name = source.group(1) if source else ""
    return Collective(kind, sent * count, count, max(sizes), shape, dtype, name)


def _size(kind: str, shape: str) -> int:
    count = 1
    for n in filter(None, shape.split(",")):
        count *= int(n)
    return count * _BYTES.get(kind, 4)


def _group_size(line: str) -> int:
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed.group(1).split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota.group(2))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", line)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
        size = 1
        for axis in re.findall(r"'(\w+)'", mesh.group(2)):
            size *= int(sizes[axis])
        return size
    return 2
