"""What the benchmark scripts share: naming the machine, writing a section of RESULTS.md."""

from __future__ import annotations

import platform
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def processor_name() -> str:
    """The processor's model name, or the machine's type where that is not told."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def replace_section(name: str, lines: list[str], page: Path = RESULTS) -> None:
    """Writes lines between the markers of a section of RESULTS.md, or of another page."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, found, rest = page.read_text(encoding="utf-8").partition(start)
    if not found or end not in rest:
        raise ValueError(f"{page} has no section {name}")
    tail = rest.partition(end)[2]
    page.write_text(head + start + "\n".join(lines) + "\n" + end + tail, encoding="utf-8")
