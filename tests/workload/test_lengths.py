"""Length laws: means, bounds, and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from splitgym.randomness import Streams
from splitgym.workload.lengths import TabulatedLengths
from splitgym.workload.sources import Lengths

COUNT = 100_000


@pytest.mark.parametrize(
    ("law", "mean", "low", "high"),
    [
        (512, 512, 512, 512),
        ({"law": "fixed", "tokens": 7}, 7, 7, 7),
        ({"law": "lognormal", "mean_tokens": 300, "cv": 0.8}, 300, 1, 131_072),
        ({"law": "exponential", "mean_tokens": 200, "max_tokens": 3000}, 200, 1, 3000),
        ({"law": "uniform", "low_tokens": 10, "high_tokens": 20}, 15, 10, 20),
    ],
)
def test_laws(law: Any, mean: float, low: int, high: int) -> None:
    lengths = TypeAdapter(Lengths).validate_python({"law": "independent", "prompt": law, "output": law})
    prompt, output = lengths.draw(Streams(1), COUNT)
    for drawn in (prompt, output):
        assert drawn.dtype == np.int64
        assert drawn.min() >= low
        assert drawn.max() <= high
        assert drawn.mean() == pytest.approx(mean, rel=0.015)  # five standard errors of the widest
    if low < high:
        assert abs(np.corrcoef(prompt, output)[0, 1]) < 0.02


def test_a_table_keeps_the_dependence_it_was_fitted_to() -> None:
    rng = np.random.default_rng(0)
    prompt = rng.integers(1, 4000, COUNT)
    output = np.maximum(1, (prompt * rng.lognormal(0, 0.3, COUNT) / 4).astype(np.int64))
    levels = np.array([0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1])
    table = TabulatedLengths.fit(prompt, output, levels, np.linspace(0, 1, 21))
    drawn_prompt, drawn_output = table.draw(Streams(2), COUNT)
    assert np.quantile(drawn_prompt, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(prompt, [0.1, 0.5, 0.9]), rel=0.02)
    for quantile in (0.5, 0.99):
        work = np.quantile(drawn_prompt * drawn_output, quantile)
        assert work == pytest.approx(np.quantile(prompt * output, quantile), rel=0.05)


@pytest.mark.parametrize(
    "card",
    [
        "azure-conversaton",
        {"law": "independent", "prompt": 0, "output": 1},
        {"law": "independent", "prompt": True, "output": 1},
        {"law": "independent", "prompt": 10},
        {"law": "independent", "prompt": 10, "output": {"law": "uniform", "low_tokens": 9, "high_tokens": 8}},
        {"law": "independent", "prompt": 10, "output": {"law": "lognormal", "mean_tokens": 9, "sd": 8}},
    ],
)
def test_impossible_lengths_are_refused(card: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Lengths).validate_python(card)
