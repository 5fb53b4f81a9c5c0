"""The best step of a run by a metric of its evaluations, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from qa_jax.config import TrainConfig
from qa_jax.errors import InputError, suggest
from qa_jax.train.metrics import FILE, read_metrics


class BestStep:
    """The best of the evaluations so far, a function of the metrics file alone.

    Args:
        metric: `train.best_metric`; more is better for accuracies and exact matches, else less.
        patience: `train.patience`.

    Attributes:
        step: the best one, or None.
        value: its metric.
        num_worse: evaluations since that were not better.
    """

    def __init__(self, metric: str, patience: int = 0) -> None:
        self.metric, self.patience = metric, patience
        self.step: int | None = None
        self.value, self.num_worse = math.inf, 0

    @classmethod
    def so_far(cls, config: TrainConfig, step: int) -> BestStep:
        """Of a run that has come to `step`."""
        best = cls(config.best_metric, config.patience)
        if config.best_metric and step:
            rows = read_metrics(f"{config.output_dir}/{FILE}")
            best._read(row for row in rows if row["step"] <= step)
        return best

    def _read(self, rows: Iterable[Mapping[str, float]]) -> None:
        for row in rows:
            if self.metric in row:
                self.update(int(row["step"]), row)

    def update(self, step: int, values: Mapping[str, float]) -> bool:
        """Takes an evaluation's metrics; returns whether it is the best.

        Raises InputError naming the metrics that there are, if `metric` is not among them.
        """
        if not self.metric:
            return False
        if self.metric not in values:
            raise InputError(
                f"train.best_metric {self.metric}",
                "is not a metric of the evaluations",
                suggest(self.metric, values),
            )
        value, is_first = values[self.metric], self.step is None
        more_is_better = self.metric.endswith(("accuracy", "exact_match", "bleu", "f1"))
        is_better = value > self.value if more_is_better else value < self.value
        if is_first or is_better:
            self.step, self.value, self.num_worse = step, value, 0
            return True
        self.num_worse += 1
        return False

    @property
    def is_exhausted(self) -> bool:
        """Whether the run ends here."""
        return 0 < self.patience <= self.num_worse

    def __str__(self) -> str:
        return f"best {self.metric} {self.value:.4g} at step {self.step}"
