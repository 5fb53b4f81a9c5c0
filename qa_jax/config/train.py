"""The training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainConfig:
    """The training run.

    Attributes:
        output_dir: directory of checkpoints and metrics, local or gs://, that all hosts share; a
            run with the same directory resumes.
        steps: optimizer steps in all.
        seed: seed of the initial parameters and of dropout.
        init_from: checkpoint (qa_jax or Hugging Face) or qa_jax adapter to start from, or a step
            of one (DIR/checkpoints/STEP); empty to train from scratch.
        resume: what to do with the steps in output_dir: `latest` continues from the newest, a
            number from that step (newer ones move to OUTPUT_DIR/superseded), `none` refuses them.
        objective: a name of `qa_jax.train.objectives.OBJECTIVES`: `sft`, cross-entropy on
            assistant turns, or `dpo`, direct preference optimization on pairs (see DPOConfig).
        ema_decay: decay of an EMA of the trainable parameters, which is then evaluated and saved;
            0 for none.
        length_exponent: each target token of a record weighs n ** exponent, n being their number:
            0 weighs tokens equally, -1 weighs records equally.
        log_every: steps between log lines, besides the last step.
        save_every: steps between checkpoints, besides the last step; 0 for the last step only.
        eval_every: steps between evaluations, besides the last step; 0 for the last step only.
        eval_max_new_tokens: with more than 0, evaluations also generate answers of so many tokens,
            greedily, and score them; for one process, and not with LoRA.
        eval_metrics: metrics of those answers, names of `qa_jax.evaluate.metrics.METRICS`; `wer`
            is told as `eval_wer`.
        eval_normalizer: of texts before they are compared, a name of
            `qa_jax.evaluate.normalizers.NORMALIZERS`.
        eval_language: ISO code of the texts' language, for normalizers that depend on it.
        best_metric: metric of the evaluations, such as `eval_loss`, whose best step is kept as
            well; empty for none.
        patience: evaluations without a better `best_metric` after which the run ends; 0 for never.
        max_to_keep: number of latest checkpoints kept.
        keep_period: checkpoints whose step is a multiple of this are kept as well; 0 for none.
        max_skipped_steps: steps with a loss or gradients that are not finite whose update is left
            out before the run stops; 0 stops at the first.
        compile_cache_dir: directory of compiled programs, local or gs://, which later runs and
            other hosts reuse; empty for JAX's own setting (JAX_COMPILATION_CACHE_DIR).
        xla_flags: `tuned` passes the compiler options of `qa_jax/parallel/xla_flags.py`.
        wandb_project: project of Weights & Biases to log to, besides the files; empty for none.
        profile: first and last step of a profiler trace, written to OUTPUT_DIR/profile.
    """

    output_dir: str = "runs/qa_jax"
    steps: int = 1000
    seed: int = 0
    init_from: str = ""
    resume: int | Literal["latest", "none"] = "latest"
    objective: str = "sft"
    ema_decay: float = 0.0
    length_exponent: float = 0.0
    log_every: int = 10
    save_every: int = 500
    eval_every: int = 0
    eval_max_new_tokens: int = 0
    eval_metrics: tuple[str, ...] = ("wer", "exact_match")
    eval_normalizer: str = "simple"
    eval_language: str = ""
    best_metric: str = ""
    patience: int = 0
    max_to_keep: int = 3
    keep_period: int = 0
    max_skipped_steps: int = 0
    compile_cache_dir: str = ""
    xla_flags: Literal["default", "tuned"] = "tuned"
    wandb_project: str = ""
    profile: tuple[int, int] | None = None
