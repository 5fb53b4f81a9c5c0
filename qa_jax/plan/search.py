"""The fastest settings of a training step that fits a target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from qa_jax.config import JsonDict, RunConfig
from qa_jax.errors import InputError
from qa_jax.parallel import mesh_sizes
from qa_jax.plan.cycles import KERNEL_EFFICIENCY
from qa_jax.plan.estimate import Plan
from qa_jax.plan.plan import analytic_plan, make_plan
from qa_jax.plan.target import Target

Report = Callable[[Plan, str], None]
"""Called with each compiled plan, and the progress of the search."""


def search(
    config: RunConfig,
    target: Target,
    report: Report = lambda *_: None,
    quick: bool = False,
    kernel_efficiency: float = KERNEL_EFFICIENCY,
    cache_dir: Path | None = None,
) -> tuple[Plan, JsonDict] | None:
    """The step that fits and computes most tokens a day, over rows, remat policies, meshes and
    compiler options; and its settings, for a recipe. None if none fits.

    All candidates get an analytic plan; those that may fit are compiled from the fastest bound on,
    until no bound is above the best prediction. Other arguments are those of `make_plan`; with
    `cache_dir` a search that was stopped goes on where it was.
    """
    bounds = []
    for candidate in _candidates(config, target):
        try:
            plan, _ = analytic_plan(candidate, target)
        except InputError:
            continue
        if plan.fits:
            bounds.append((plan.tokens_per_chip_day, candidate))
    bounds.sort(key=lambda x: -x[0])
    best: tuple[Plan, RunConfig] | None = None
    for i, (at_most, candidate) in enumerate(bounds):
        if best is not None and at_most <= best[0].tokens_per_chip_day:
            break
        plan = make_plan(
            candidate,
            target,
            quick=quick,
            kernel_efficiency=kernel_efficiency,
            cache_dir=cache_dir,
        )
        if plan.fits and (best is None or plan.tokens_per_chip_day > best[0].tokens_per_chip_day):
            best = plan, candidate
        report(plan, f"{i + 1} of at most {len(bounds)}")
    return best and (best[0], recipe(best[1]))


def recipe(config: RunConfig) -> JsonDict:
    """The settings that `search` chooses, as in a configuration file."""
    return {
        "mesh": dataclasses.asdict(config.mesh),
        "data": {"buckets": dict(config.data.buckets)},
        "model": {"remat": config.model.remat},
        "train": {"xla_flags": config.train.xla_flags},
    }


def _candidates(config: RunConfig, target: Target) -> Iterator[RunConfig]:
    """All batches, policies and meshes; `data` copies of the parameters where there are several
    slices, and 2 to 4 within a slice."""
    num_slices = len({getattr(d, "slice_index", 0) for d in target.devices}) or 1
    for tensor in (1, 2, 4):
        for data in sorted({num_slices * n for n in (1, 2, 4)}):
            if target.num_devices % (tensor * data):
                continue
            mesh = dataclasses.replace(config.mesh, data=data, fsdp=-1, tensor=tensor)
            _, fsdp, _ = mesh_sizes(mesh, target.num_devices)
            for rows_per_shard in (1, 2, 4, 8, 16):
                rows = rows_per_shard * data * fsdp
                buckets = dict.fromkeys(config.data.buckets, rows)
                for remat in ("full", "attention", "mlp", "dots"):
                    for flags in ("tuned", "default") if target.devices else ("default",):
                        yield dataclasses.replace(
                            config,
                            mesh=mesh,
                            data=dataclasses.replace(config.data, buckets=buckets),
                            model=dataclasses.replace(config.model, remat=remat),
                            train=dataclasses.replace(config.train, xla_flags=flags),
                        )
