"""Requests: what arrives, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from splitgym.workload.prefixes import Prefixes

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Requests:
    """Requests in order of arrival; request ``i`` is row ``i``.

    Raises:
        ValueError: if the arrays differ in length, arrivals decrease or are negative, a length is below 1, or a
            deadline is not above 0.
    """

    arrival_s: FloatArray  # (num_requests,) non-decreasing, ≥ 0
    prompt_tokens: IntArray  # (num_requests,) ≥ 1
    output_tokens: IntArray  # (num_requests,) ≥ 1, the first token included
    predicted_output_tokens: FloatArray  # (num_requests,) what a router may know: E[output | prompt] of the workload
    slo_class: IntArray = field(default_factory=lambda: np.empty(0, np.int64))  # (num_requests,) all 0 unless given
    deadline_s: FloatArray = field(default_factory=lambda: np.empty(0))
    """(num_requests,) from arrival to when the client gives up; ``inf``, the default, for never."""
    prefixes: Prefixes | None = None  # which prompts begin alike, where that is known

    def __post_init__(self) -> None:
        if len(self.slo_class) == 0:
            object.__setattr__(self, "slo_class", np.zeros(len(self.arrival_s), np.int64))
        if len(self.deadline_s) == 0:
            object.__setattr__(self, "deadline_s", np.full(len(self.arrival_s), np.inf))
        lengths = {len(self.arrival_s), len(self.prompt_tokens), len(self.output_tokens)}
        if len(lengths | {len(self.predicted_output_tokens), len(self.slo_class), len(self.deadline_s)}) != 1:
            raise ValueError("arrays of different lengths")
        if len(self) and (np.any(np.diff(self.arrival_s) < 0) or self.arrival_s[0] < 0):
            raise ValueError("arrival_s must be non-decreasing and ≥ 0")
        if len(self) and min(self.prompt_tokens.min(), self.output_tokens.min()) < 1:
            raise ValueError("prompt_tokens and output_tokens must be ≥ 1")
        if not np.all(self.deadline_s > 0):
            raise ValueError("deadline_s must be above 0")

        if self.prefixes is not None:
            counts = np.diff(self.prefixes.first)
            if len(counts) != len(self) or np.any(counts * self.prefixes.block_tokens > self.prompt_tokens):
                raise ValueError("prefixes must name full blocks of each prompt")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def have_deadlines(self) -> bool:
        """Whether any client gives up at some time."""
        return bool(np.any(np.isfinite(self.deadline_s)))
