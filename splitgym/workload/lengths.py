"""Prompt and output lengths: simple laws for each alone, and tables of outputs given the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from splitgym.randomness import Streams
from splitgym.workload.requests import FloatArray, IntArray


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FixedLength(_Frozen):
    """Always the same; a bare number in a card is short for it."""

    law: Literal["fixed"]
    tokens: int = Field(ge=1)

    def sample(self, rng: np.random.Generator, count: int) -> FloatArray:
        """(count,) lengths before rounding."""
        return np.full(count, float(self.tokens))


class LognormalLength(_Frozen):
    """Lognormal with the given mean and coefficient of variation, cut at ``max_tokens``."""

    law: Literal["lognormal"]
    mean_tokens: float = Field(ge=1)
    cv: float = Field(default=1.0, gt=0, le=10)
    max_tokens: int = Field(default=131_072, ge=1)

    def sample(self, rng: np.random.Generator, count: int) -> FloatArray:
        """(count,) lengths before rounding."""
        variance = np.log1p(self.cv**2)
        draws = rng.lognormal(np.log(self.mean_tokens) - variance / 2, np.sqrt(variance), count)
        return np.minimum(draws, self.max_tokens)


class ExponentialLength(_Frozen):
    """Exponential with the given mean, cut at ``max_tokens``; below one token is one."""

    law: Literal["exponential"]
    mean_tokens: float = Field(ge=1)
    max_tokens: int = Field(default=131_072, ge=1)

    def sample(self, rng: np.random.Generator, count: int) -> FloatArray:
        """(count,) lengths before rounding."""
        return np.minimum(rng.exponential(self.mean_tokens, count), self.max_tokens)


class UniformLength(_Frozen):
    """Any whole number from ``low_tokens`` to ``high_tokens``, both included."""

    law: Literal["uniform"]
    low_tokens: int = Field(ge=1)
    high_tokens: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> UniformLength:
        if self.high_tokens < self.low_tokens:
            raise ValueError(f"high_tokens {self.high_tokens} is below low_tokens {self.low_tokens}; swap them")
        return self

    def sample(self, rng: np.random.Generator, count: int) -> FloatArray:
        """(count,) lengths before rounding."""
        return self.low_tokens + np.floor(rng.random(count) * (self.high_tokens - self.low_tokens + 1))


def _bare_number(value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return {"law": "fixed", "tokens": value} if whole else value


Length = Annotated[
    FixedLength | LognormalLength | ExponentialLength | UniformLength,
    Field(discriminator="law"),
    BeforeValidator(_bare_number),
]


class IndependentLengths(_Frozen):
    """Prompt and output drawn apart."""

    law: Literal["independent"]
    prompt: Length
    output: Length

    def draw(self, streams: Streams, count: int) -> tuple[IntArray, IntArray]:
        """(count,) prompt tokens and (count,) output tokens."""
        prompt = self.prompt.sample(streams.generator("prompt-lengths"), count)
        output = self.output.sample(streams.generator("output-lengths"), count)
        return _whole(prompt), _whole(output)

    def resolved(self, base_dir: Path) -> Self:
        """Itself: it has no path."""
        return self


class PromptBin(_Frozen):
    """Requests whose prompts are no longer than ``up_to_prompt_tokens`` and in no earlier bin."""

    up_to_prompt_tokens: int = Field(ge=1)
    weight: float = Field(gt=0, le=1)
    prompt_tokens: tuple[float, ...]  # (num_levels,) quantiles of the prompt within the bin
    output_tokens: tuple[float, ...]  # (num_levels,) quantiles of the output within the bin


class TabulatedLengths(_Frozen):
    """Quantiles of prompt and output by bins of the prompt, through which the output depends on it."""

    levels: tuple[float, ...]  # (num_levels,) from 0 to 1
    bins: tuple[PromptBin, ...] = Field(min_length=1)

    def draw(self, streams: Streams, count: int) -> tuple[IntArray, IntArray]:
        """(count,) prompts and (count,) outputs, interpolated in the logarithm between quantiles."""
        which, prompt_level, output_level = streams.generator("lengths").random((count, 3)).T
        weights = np.cumsum([row.weight for row in self.bins])
        bin_of = np.minimum(np.searchsorted(weights / weights[-1], which, side="right"), len(self.bins) - 1)
        prompt, output = np.empty(count), np.empty(count)
        for index, row in enumerate(self.bins):
            here = bin_of == index
            prompt[here] = np.exp(np.interp(prompt_level[here], self.levels, np.log(row.prompt_tokens)))
            output[here] = np.exp(np.interp(output_level[here], self.levels, np.log(row.output_tokens)))
        return _whole(prompt), _whole(output)

    @classmethod
    def fit(
        cls, prompt_tokens: IntArray, output_tokens: IntArray, levels: FloatArray, edges: FloatArray
    ) -> TabulatedLengths:
        """The table of (n,) measured requests, with prompt bins at the quantiles ``edges`` (from 0 to 1)."""
        upper = np.unique(np.quantile(prompt_tokens, edges[1:], method="inverted_cdf"))
        bin_of = np.searchsorted(upper, prompt_tokens, side="left")
        rows = []
        for index, edge in enumerate(upper):
            here = bin_of == index
            prompt, output = (np.quantile(values[here], levels) for values in (prompt_tokens, output_tokens))
            rows.append(
                PromptBin(
                    up_to_prompt_tokens=int(edge),
                    weight=round(float(here.mean()), 5),
                    prompt_tokens=tuple(np.round(prompt, 1).tolist()),
                    output_tokens=tuple(np.round(output, 1).tolist()),
                )
            )
        return cls(levels=tuple(levels.tolist()), bins=tuple(rows))


def _whole(lengths: FloatArray) -> IntArray:
    return np.maximum(np.rint(lengths), 1).astype(np.int64)
