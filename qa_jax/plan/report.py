"""A plan as text."""

from __future__ import annotations

from qa_jax.plan.estimate import Plan


def describe(plan: Plan) -> list[str]:
    """Lines for a terminal."""
    s, used = plan.shapes, plan.bytes_per_chip
    mesh = " x ".join(f"{axis} {n}" for axis, n in plan.mesh.items())
    lines = [
        f"{plan.topology}: {plan.devices} devices, mesh {mesh}, remat {plan.remat}",
        f"a step: {s.grad_accum_steps} x {s.num_rows} rows of {s.num_tokens:,} tokens, "
        f"{s.num_clips} clips of {s.num_frames * 0.01:g} s; {plan.parameters:,} parameters",
    ]
    if plan.problem:
        lines.append(f"DOES NOT FIT: {plan.problem}, {_gib(plan.hbm_bytes_per_chip)} per device")
    else:
        method = "compiled" if plan.compiled else "analytic"
        lines.append(
            f"fits ({method}), {_gib(sum(used.values()))} of {_gib(plan.hbm_bytes_per_chip)}: "
            + ", ".join(f"{name} {_gib(size)}" for name, size in used.items() if size)
        )
    lines.append(f"{plan.flops_per_chip / 1e12:.1f} TFLOP per device, without recomputation")
    lines.append(
        "sent per device: "
        + (
            ", ".join(f"{k} {_gib(x)}" for k, x in sorted(plan.network_bytes_per_chip.items()))
            or "nothing"
        )
    )
    lines.append(
        "at least "
        + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in plan.seconds.items())
        + f": bound by {plan.bound}, MFU at most {plan.mfu_bound:.1%}"
    )
    if plan.predicted:
        lines.append(
            f"predicted by the compiler's static model {plan.predicted_seconds:.3f} s ("
            + ", ".join(f"{kind} {seconds:.3f} s" for kind, seconds in plan.predicted.items())
            + f"): MFU {plan.mfu_predicted:.1%}"
        )
        lines.append("costliest:")
        lines += [
            f" {x.seconds * 1e3:8.2f} ms {x.kind:<11} {x.num_executions:>3} x {x.name} ({x.source})"
            for x in plan.costliest
        ]
    rate = "about" if plan.predicted else "at most"
    lines.append(
        f"{rate} {plan.tokens_per_chip_day / 1e6:,.1f} million tokens and "
        f"{plan.audio_hours_per_chip_day:,.0f} hours of audio per device and day"
    )
    if plan.compiled:
        lines.append(f"compiled in {plan.compile_seconds:.0f} s")
    return lines


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
