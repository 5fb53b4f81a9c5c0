"""Labels by the authors' rule, which is equality, and by a lenient one."""

from __future__ import annotations

import math

from qa_jax.evaluate.metrics import find_metric, metric_of_texts

REFERENCES = ["joy", "joy", "Throat clearing", "joy"]
ANSWERS = ["joy", " joy", "throat-clearing", "Joy."]


def test_rules() -> None:
    assert metric_of_texts("accuracy", REFERENCES, ANSWERS) == 0.5
    assert metric_of_texts("lenient_accuracy", REFERENCES, ANSWERS) == 1
    assert metric_of_texts("exact_match", ["a man ", "yes"], [" a man", "Yes"]) == 0.5
    # The authors strip the answer's left side alone.
    assert metric_of_texts("accuracy", ["joy"], ["joy "]) == 0


def test_nothing_counted_is_no_number() -> None:
    rows = [{"reference": "a", "prediction": "none of them", "choices": ["a", "b"]}]
    assert math.isnan(find_metric("air_bench").of(rows))
