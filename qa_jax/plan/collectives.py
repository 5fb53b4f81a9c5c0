"""The collectives of a compiled program, read from its text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(
    r"(?:calls|body|to_apply|branch_computations|called_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)"
)
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
    bodies = dict(_computations(text))
    counts = _execution_counts(bodies)
    found = []
    seen = set()
    for name, lines in bodies.items():
        if not counts[name]:
            continue
        for line in lines:
            one = _parse_collective(line, counts[name])
            if one is None:
                continue
            # An asynchronous collective appears several times, with one channel id.
            channel = re.search(r"channel_id=(\d+)", line)
            key = channel.group(1) if channel else line
            if key not in seen:
                seen.add(key)
                found.append(one)
    return found


def bytes_by_collective(text: str) -> dict[str, int]:
    """Bytes sent by a device in one run of a compiled module, by kind of collective."""
    sent: Counter[str] = Counter()
    for collective in collectives(text):
        sent[collective.kind] += round(collective.sent)
    return dict(sent)


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name = ""
    lines: list[str] = []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines = ("ENTRY" if header.group(1) else header.group(2)), []
        elif line.startswith("}"):
            yield name, lines
        else:
            lines.append(line)


def _execution_counts(bodies: dict[str, list[str]]) -> Counter[str]:
    """How often each computation is executed."""
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, lines in bodies.items():
        for line in lines:
            trips = _trip_count(line, bodies) if " while(" in line else 1
            for called in _CALLED.findall(line):
                for each in re.findall(r"[\w.\-]+", called):
                    callers[each].append((name, trips))
    counts: Counter[str] = Counter({"ENTRY": 1})

    def count(name: str) -> int:
        if name not in counts:
            counts[name] = sum(count(caller) * trips for caller, trips in callers[name])
        return counts[name]

    for name in bodies:
        count(name)
    return counts


def _trip_count(line: str, bodies: dict[str, list[str]]) -> int:
    """A loop's annotated trip count, or its counter's limit over its increment."""
    known = re.search(r"known_trip_count[^\d]*(\d+)", line)
    if known:
        return int(known.group(1))
    condition, body = (re.search(rf"{k}=%?([\w.\-]+)", line) for k in ("condition", "body"))
    if condition is None or body is None:
        return 1
    test, work = bodies.get(condition.group(1), []), bodies.get(body.group(1), [])
    limits = [int(n) for text in test for n in re.findall(r" constant\((\d+)\)", text)]
    index = re.findall(r" get-tuple-element\([^)]*\), index=(\d+)", "\n".join(test))
    if len(limits) != 1 or len(index) != 1:
        return 1
    return -(-limits[0] // _step(work, int(index[0])))


def _step(body: list[str], index: int) -> int:
    """What a loop's body adds to the index-th of its carried values."""
    defined = {m.group(1): m.group(2) for m in map(_INSTRUCTION.match, body) if m}
    root = next((line for line in body if line.lstrip().startswith("ROOT")), "")
    carried = re.search(r" tuple\((.*?)\)(, |$)", root)
    names = re.findall(r"%([\w.\-]+)", carried.group(1)) if carried else []
    added = re.search(r" add\(([^)]*)\)", defined.get(names[index], "")) if names else None
    terms = re.findall(r"%([\w.\-]+)", added.group(1)) if added else []
    steps = [re.search(r" constant\((\d+)\)", defined.get(t, "")) for t in terms]
    return next((int(m.group(1)) for m in steps if m), 1) or 1


def _parse_collective(line: str, count: int) -> Collective | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    operation = re.search(r" ([a-z\-]+)\(", " " + match.group(2))
    kind = next((k for k in _KINDS if operation and operation.group(1) in (k, f"{k}-start")), None)
    if operation is None or kind is None:
        return None
    result = (" " + match.group(2))[: operation.start()]
    arrays = _ARRAY.findall(result)
    sizes = [_size(*array) for array in arrays]
    if not sizes:
        return None
    is_start = operation.group(1).endswith("-start")
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
