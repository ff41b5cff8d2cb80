"""The shipped figures against the traces they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from splitgym.randomness import Streams
from splitgym.workload import Requests, Workload, WorkloadConfig, read_trace, shipped_workload

FILES = {
    "azure-conversation": "AzureLLMInferenceTrace_conv.csv",
    "azure-coding": "AzureLLMInferenceTrace_code.csv",
}
SEEDS = 40


@pytest.fixture(scope="module", params=FILES)
def pair(request: pytest.FixtureRequest, shared: Path) -> tuple[str, Requests, list[Requests]]:
    """A name, the real trace, and as many generated hours as there are seeds."""
    name = request.param
    real = read_trace(shared / "data" / "azure" / FILES[name])
    card = {"source": "synthetic", "lengths": name, "arrivals": name}
    made: Workload = TypeAdapter(WorkloadConfig).validate_python(card)
    return name, real, [made.draw(Streams(seed), duration_s=real.arrival_s[-1]) for seed in range(SEEDS)]


def counts(trace: Requests, window_s: float, length_s: float) -> np.ndarray:
    return np.histogram(trace.arrival_s, np.arange(0, length_s, window_s))[0]


def mean_over_seeds(drawn: list[Requests], figure: Callable[[Requests], float]) -> float:
    return float(np.mean([figure(trace) for trace in drawn]))


def test_length_quantiles(pair: tuple[str, Requests, list[Requests]]) -> None:
    _, real, drawn = pair
    for name in ("prompt_tokens", "output_tokens"):
        generated = np.concatenate([getattr(trace, name) for trace in drawn])
        for level in (0.1, 0.5, 0.9, 0.99):
            expected = np.quantile(getattr(real, name), level)
            assert np.quantile(generated, level) == pytest.approx(expected, rel=0.05), (name, level)
        assert generated.mean() == pytest.approx(getattr(real, name).mean(), rel=0.06)


def test_decode_work(pair: tuple[str, Requests, list[Requests]]) -> None:
    # prompt x output; drawn apart, the conversation's P99 would be 2.5 times the real one
    _, real, drawn = pair
    work = np.concatenate([trace.prompt_tokens * trace.output_tokens for trace in drawn])
    for level, tolerance in ((0.5, 0.1), (0.9, 0.1), (0.99, 0.1)):
        expected = np.quantile(real.prompt_tokens * real.output_tokens, level)
        assert np.quantile(work, level) == pytest.approx(expected, rel=tolerance), level


@pytest.mark.parametrize(("window_s", "tolerance"), [(1.0, 0.15), (10.0, 0.15), (60.0, 0.3)])
def test_dispersion(pair: tuple[str, Requests, list[Requests]], window_s: float, tolerance: float) -> None:
    # one hour of the real process is one draw of a wide distribution, widest at 60 s
    _, real, drawn = pair
    length_s = float(real.arrival_s[-1])

    def index(trace: Requests) -> float:
        seen = counts(trace, window_s, length_s)
        return float(seen.var() / seen.mean())

    assert mean_over_seeds(drawn, index) == pytest.approx(index(real), rel=tolerance)


def test_the_rate_of_a_minute_tells_the_next(pair: tuple[str, Requests, list[Requests]]) -> None:
    _, real, drawn = pair
    length_s = float(real.arrival_s[-1])

    def correlation(trace: Requests) -> float:
        minutes = counts(trace, 60.0, length_s)
        return float(np.corrcoef(minutes[:-1], minutes[1:])[0, 1])

    assert mean_over_seeds(drawn, correlation) == pytest.approx(correlation(real), abs=0.1)


def test_gaps_vary_as_much(pair: tuple[str, Requests, list[Requests]]) -> None:
    _, real, drawn = pair

    def variation(trace: Requests) -> float:
        gaps_s = np.diff(trace.arrival_s)
        return float(gaps_s.std() / gaps_s.mean())

    assert mean_over_seeds(drawn, variation) == pytest.approx(variation(real), rel=0.15)


@pytest.mark.parametrize("name", FILES)
def test_figures_name_their_source(name: str) -> None:
    figures = shipped_workload(name)  # type: ignore[arg-type]
    assert figures.licence == "CC-BY-4.0"
    assert "Azure Public Dataset" in figures.source
    assert "ISCA 2024" in figures.citation
    assert sum(row.weight for row in figures.lengths.bins) == pytest.approx(1, abs=1e-3)
