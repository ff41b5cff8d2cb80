"""Predictions of given quality: as good as they say, and whatever they say the same requests arrive."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from splitgym.randomness import Streams
from splitgym.workload import Requests, Workload, WorkloadConfig

BASE = {"source": "synthetic", "arrivals": "poisson", "lengths": "azure-conversation", "rate_rps": 20}


def workload(prediction: object = None) -> Workload:
    content = BASE if prediction is None else BASE | {"prediction": prediction}
    made: Workload = TypeAdapter(WorkloadConfig).validate_python(content)
    return made


def drawn(prediction: object = None, count: int = 20_000) -> Requests:
    return workload(prediction).draw(Streams(3), num_requests=count)


def test_the_mean_is_the_default() -> None:
    plain, named = drawn(), drawn("mean")
    np.testing.assert_array_equal(plain.predicted_output_tokens, named.predicted_output_tokens)
    assert len(set(plain.predicted_output_tokens)) <= 10  # one for each decile of the prompt


@pytest.mark.parametrize("prediction", ["oracle", {"quality": "noisy", "relative_error": 0.5}, {"quality": "bucket"}])
def test_what_is_predicted_changes_nothing_that_arrives(prediction: object) -> None:
    plain, other = drawn(), drawn(prediction)
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(other, name))
    shorter = drawn(prediction, 500)
    np.testing.assert_array_equal(shorter.predicted_output_tokens, other.predicted_output_tokens[:500])


def test_an_oracle_is_right() -> None:
    found = drawn("oracle")
    np.testing.assert_array_equal(found.predicted_output_tokens, found.output_tokens)


@pytest.mark.parametrize("error", [0.1, 0.5])
def test_noise_has_its_relative_error(error: float) -> None:
    """Of 20,000 ratios; outputs long enough that the floor of one token does not count."""
    found = drawn({"quality": "noisy", "relative_error": error})
    ratio = (found.predicted_output_tokens / found.output_tokens)[found.output_tokens > 20]
    assert ratio.mean() == pytest.approx(1.0, abs=4 * error / np.sqrt(len(ratio)))
    assert ratio.std() == pytest.approx(error, rel=0.05)
    assert found.predicted_output_tokens.min() >= 1


@pytest.mark.parametrize("accuracy", [1.0, 0.6, 0.0])
def test_a_bucket_is_right_as_often_as_it_says(accuracy: float) -> None:
    found = drawn({"quality": "bucket", "buckets": 5, "accuracy": accuracy})
    levels, predicted = np.unique(found.predicted_output_tokens, return_inverse=True)
    assert len(levels) == 5
    assert (np.diff(levels) > 0).all()
    sure = drawn({"quality": "bucket", "buckets": 5})
    right = np.searchsorted(levels, sure.predicted_output_tokens)
    assert (predicted == right).mean() == pytest.approx(accuracy, abs=4 * 0.5 / np.sqrt(20_000))
    assert set(np.abs(predicted - right)) <= {0, 1}  # else it is the class beside
    counts = np.bincount(right) / len(right)
    np.testing.assert_allclose(counts, 0.2, atol=0.02)  # equally frequent in the reference, of whole tokens


def test_a_trace_is_predicted_as_well_as_the_card_says() -> None:
    trace = drawn(count=200)
    told = workload("oracle").predict_again(Streams(0), trace)
    np.testing.assert_array_equal(told.predicted_output_tokens, trace.output_tokens)
    assert workload().predict_again(Streams(0), trace) is trace


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ("orakle", "orakle"),
        ({"quality": "noisy"}, "relative_error"),
        ({"quality": "bucket", "buckets": 1}, "greater than or equal to 2"),
        ({"quality": "bucket", "accuracy": 1.5}, "less than or equal to 1"),
    ],
)
def test_what_cannot_be_is_refused(prediction: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        workload(prediction)


def test_a_part_does_not_predict_by_itself() -> None:
    parts = [{"weight": 1, "workload": BASE | {"prediction": "oracle"}}]
    with pytest.raises(ValidationError, match="prediction is the whole workload's"):
        TypeAdapter(WorkloadConfig).validate_python({"source": "mixture", "rate_rps": 3, "parts": parts})
