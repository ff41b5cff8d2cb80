"""How well a router predicts output lengths: the ``prediction:`` field of a workload."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from splitgym.randomness import Streams
from splitgym.workload.prediction import OutputPredictor
from splitgym.workload.requests import FloatArray, IntArray

STREAM = "prediction"


class _Quality(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def fit(self, prompt_tokens: IntArray, output_tokens: IntArray) -> OutputPredictor:
        """What is learned from (n,) reference requests."""
        return OutputPredictor.fit(prompt_tokens, output_tokens)


class MeanPrediction(_Quality):
    """E[output | prompt] under the workload, by decile of the prompt: what follows from a prompt's length alone."""

    quality: Literal["mean"] = "mean"

    def predict(self, known: OutputPredictor, streams: Streams, prompt: IntArray, output: IntArray) -> FloatArray:
        """(n,) predicted output tokens of (n,) prompts and true outputs."""
        return known.predict(prompt)


class OraclePrediction(_Quality):
    """The true length."""

    quality: Literal["oracle"]

    def predict(self, known: OutputPredictor, streams: Streams, prompt: IntArray, output: IntArray) -> FloatArray:
        """(n,) predicted output tokens of (n,) prompts and true outputs."""
        return output.astype(np.float64)


class NoisyPrediction(_Quality):
    """The true length times a lognormal error of mean 1 and standard deviation ``relative_error``; at least 1."""

    quality: Literal["noisy"]
    relative_error: float = Field(gt=0, le=10)

    def predict(self, known: OutputPredictor, streams: Streams, prompt: IntArray, output: IntArray) -> FloatArray:
        """(n,) predicted output tokens of (n,) prompts and true outputs."""
        variance = np.log1p(self.relative_error**2)
        draws = streams.generator(STREAM).standard_normal(len(output))
        predicted: FloatArray = np.maximum(output * np.exp(np.sqrt(variance) * draws - variance / 2), 1.0)
        return predicted


class BucketPrediction(_Quality):
    """The mean output of one of ``buckets`` equally frequent classes of output length.

    It is the right one with probability ``accuracy``, else one of the two beside it.
    """

    quality: Literal["bucket"]
    buckets: int = Field(default=10, ge=2, le=100)
    accuracy: float = Field(default=1.0, ge=0, le=1)

    def fit(self, prompt_tokens: IntArray, output_tokens: IntArray) -> OutputPredictor:
        """The classes, as steps over the output."""
        return OutputPredictor.fit(output_tokens, output_tokens, self.buckets)

    def predict(self, known: OutputPredictor, streams: Streams, prompt: IntArray, output: IntArray) -> FloatArray:
        """(n,) predicted output tokens of (n,) prompts and true outputs."""
        last = len(known.edges_tokens)
        right = np.searchsorted(known.edges_tokens, output, side="left")
        hit, side = streams.generator(STREAM).random((len(output), 2)).T
        step = np.where(side < 0.5, -1, 1)
        beside = np.where((right + step < 0) | (right + step > last), right - step, right + step)
        chosen = np.where(hit < self.accuracy, right, np.clip(beside, 0, last))
        return known.mean_output_tokens[chosen]


def _named(value: object) -> object:
    return {"quality": value} if isinstance(value, str) else value


Prediction = Annotated[
    MeanPrediction | OraclePrediction | NoisyPrediction | BucketPrediction,
    Field(discriminator="quality"),
    BeforeValidator(_named),
]
"""``prediction:`` of a workload; a bare name is short for ``{quality: name}``."""
