"""Scores of the demo with several seeds (of corpus, order and initial parameters).

    python benchmarks/demo_seeds.py --seeds 0 1 2

Finished seeds are not run again. The table is written to benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from common import cpu_name, replace_section

from qa_jax.config import read_json
from qa_jax.demo.run import TASKS, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/demo_seeds"))
    parser.add_argument("--configs", type=Path, default=Path("configs"))
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        directory = arguments.output / str(seed)
        if not (directory / "results.json").is_file():
            started = time.perf_counter()
            run(directory, arguments.configs, seed)
            print(f"seed {seed}: {time.perf_counter() - started:.0f} s")
        rows.append(read_json(directory / "results.json"))
    mean = {task: sum(r[task] for r in rows) / len(rows) for task in TASKS}
    lines = [
        f"{datetime.date.today()}, {cpu_name()}, {len(os.sched_getaffinity(0))} cores, "
        f"jax {jax.__version__}. Test split, from generated text.",
        "",
        "| seed | transcription, word error rate | voice chat, exact | analysis, exact | seconds |",
        "|---|---|---|---|---|",
    ]
    for row in [
        *rows,
        {"seed": "mean", **mean, "seconds": sum(r["seconds"] for r in rows) / len(rows)},
    ]:
        scores = " | ".join(f"{row[task]:.1%}" for task in TASKS)
        lines.append(f"| {row['seed']} | {scores} | {row['seconds']:.0f} |")
    replace_section("demo_seeds", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
