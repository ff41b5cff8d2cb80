"""Classes of requests with their own promises: the ``classes:`` field of an environment card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from splitgym.randomness import Streams
from splitgym.sim.cluster import RequestClass, Slo, SloSeconds
from splitgym.workload import Lengths, OutputPredictor, Prediction, Requests
from splitgym.workload.base import REFERENCE_REQUESTS, reference_streams
from splitgym.workload.streams import part

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Slowdowns = tuple[Positive, Positive, Positive]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SloCard(_Strict):
    """Slowdowns against the baseline machine at P50, P90, P99. Defaults: Splitwise, Table VI."""

    ttft: Slowdowns = Slo.ttft
    tbt: Slowdowns = Slo.tbt
    e2e: Slowdowns = Slo.e2e

    @field_validator("ttft", "tbt", "e2e")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float, float]) -> tuple[float, float, float]:
        if not bounds[0] <= bounds[1] <= bounds[2]:
            raise ValueError(f"{list(bounds)} decrease; give the P50, P90 and P99 in this order")
        return bounds

    def build(self) -> Slo:
        """The same for the simulator."""
        return Slo(**self.model_dump())


class SloSecondsCard(_Strict):
    """Seconds that each request of a class is promised."""

    ttft: Positive
    tbt: Positive  # on average between its tokens
    e2e: Positive | None = None

    def build(self) -> SloSeconds:
        """The same for the simulator."""
        return SloSeconds(self.ttft, self.tbt, float("inf") if self.e2e is None else self.e2e)


class ClassCard(_Strict):
    """One class; of slowdowns each of its requests is promised those at P90."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    share: Positive  # of the requests, relative to the sum of all
    slo: SloCard | None = None
    slo_s: SloSecondsCard | None = None
    lengths: Lengths | None = None  # in place of the workload's

    @model_validator(mode="after")
    def _one_promise(self) -> Self:
        if (self.slo is None) == (self.slo_s is None):
            raise ValueError("give either slo, in slowdowns, or slo_s, in seconds")
        return self

    def build(self) -> RequestClass:
        """The same for the simulator."""
        promise = self.slo or self.slo_s
        assert promise is not None
        return RequestClass(self.name, promise.build())


def with_classes(
    classes: Sequence[ClassCard], requests: Requests, streams: Streams, prediction: Prediction, base_dir: Path | None
) -> Requests:
    """``requests`` with a class drawn for each, and the lengths of those classes that have their own.

    Args:
        classes: at least one.
        requests: what arrives.
        streams: a longer draw from them begins as a shorter one.
        prediction: how well outputs are predicted; a class with lengths of its own is known for them.
        base_dir: the folder from which relative paths of lengths are taken; ``None``: keep all lengths as they are.
    """
    shares = np.cumsum([kind.share for kind in classes])
    draws = streams.generator("classes").random(len(requests))
    slo_class = np.minimum(np.searchsorted(shares / shares[-1], draws, side="right"), len(classes) - 1)
    prompt_tokens, output_tokens = requests.prompt_tokens, requests.output_tokens
    predicted = requests.predicted_output_tokens
    for number, kind in enumerate(classes):
        if kind.lengths is None or base_dir is None or len(requests) == 0:
            continue
        lengths, own, here = kind.lengths.resolved(base_dir), part(streams, f"class-{kind.name}"), slo_class == number
        prompt, output = lengths.draw(own, len(requests))
        own_predicted = prediction.predict(_known(lengths, prediction), own, prompt, output)
        prompt_tokens, output_tokens = np.where(here, prompt, prompt_tokens), np.where(here, output, output_tokens)
        predicted = np.where(here, own_predicted, predicted)
    return replace(
        requests,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        predicted_output_tokens=predicted,
        slo_class=slo_class.astype(np.int64),
    )


@lru_cache(maxsize=64)
def _known(lengths: Lengths, prediction: Prediction) -> OutputPredictor:
    return prediction.fit(*lengths.draw(reference_streams(), REFERENCE_REQUESTS))
