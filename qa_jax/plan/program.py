"""The text of a compiled XLA program: its computations, and how often each is executed."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$", re.DOTALL)
_OPCODE = re.compile(r" ([a-z][a-z\-]*)\(")
_CALLED = re.compile(
    r"(?:calls|body|to_apply|branch_computations|called_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)"
)
ENTRY = "ENTRY"
"""Key of the computation with which the program starts."""


def parse_instruction(line: str) -> tuple[str, str, str] | None:
    """An instruction's name, result and opcode; or None."""
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    text = " " + match.group(2)
    opcode = _OPCODE.search(text)
    if opcode is None:
        return None
    return match.group(1), text[: opcode.start()], opcode.group(1)


def called_computations(line: str) -> list[str]:
    """The computations that an instruction executes, but for a loop's condition."""
    return [name for group in _CALLED.findall(line) for name in re.findall(r"[\w.\-]+", group)]


def computations(text: str) -> dict[str, list[str]]:
    """Instructions by computation, in their scheduled order; one that spans lines is one string."""
    return dict(_computations(text))


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name = ""
    lines: list[str] = []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines = (ENTRY if header.group(1) else header.group(2)), []
        elif line.rstrip() == "}":
            yield name, lines
        elif lines and not line.startswith(" "):  # a kernel's metadata
            lines[-1] += "\n" + line
        else:
            lines.append(line)


def execution_counts(bodies: dict[str, list[str]]) -> Counter[str]:
    """How often each computation is executed in one run of the program.

    A loop without a constant trip count is counted once.
    """
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, lines in bodies.items():
        for line in lines:
            trips = _trip_count(line, bodies) if " while(" in line else 1
            for each in called_computations(line):
                callers[each].append((name, trips))
    counts: Counter[str] = Counter({ENTRY: 1})

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
