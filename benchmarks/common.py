"""Shared by the benchmark scripts: the CPU's name, and sections of RESULTS.md."""

from __future__ import annotations

import platform
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def cpu_name() -> str:
    """The CPU's model name, or the machine's type if it is unknown."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def replace_section(name: str, lines: list[str], page: Path = RESULTS) -> None:
    """Replaces the lines between a section's markers in RESULTS.md, or in another page."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, found, rest = page.read_text(encoding="utf-8").partition(start)
    if not found or end not in rest:
        raise ValueError(f"{page} has no section {name}")
    tail = rest.partition(end)[2]
    page.write_text(head + start + "\n".join(lines) + "\n" + end + tail, encoding="utf-8")
