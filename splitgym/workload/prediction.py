"""What a router may know of an output's length: the mean output of requests with prompts like this one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitgym.workload.requests import FloatArray, IntArray


@dataclass(frozen=True)
class OutputPredictor:
    """E[output | prompt] as a step function of the prompt's length."""

    edges_tokens: FloatArray  # (num_bins - 1,) a prompt equal to an edge belongs to the bin below it
    mean_output_tokens: FloatArray  # (num_bins,)

    @classmethod
    def fit(cls, prompt_tokens: IntArray, output_tokens: IntArray, bins: int = 10) -> OutputPredictor:
        """Mean outputs by quantile bins of the prompt (deciles by default), from (n,) prompts and outputs.

        Raises:
            ValueError: without requests.
        """
        if len(prompt_tokens) == 0:
            raise ValueError("no requests to predict from")
        levels = np.arange(1, bins) / bins
        edges = np.unique(np.quantile(prompt_tokens, levels, method="inverted_cdf").astype(np.float64))
        edges = edges[edges < prompt_tokens.max()]
        bin_of = np.searchsorted(edges, prompt_tokens, side="left")
        counts = np.bincount(bin_of, minlength=len(edges) + 1)
        return cls(edges, np.bincount(bin_of, output_tokens, len(edges) + 1) / counts)

    def predict(self, prompt_tokens: IntArray) -> FloatArray:
        """(n,) expected output tokens of (n,) prompts."""
        return self.mean_output_tokens[np.searchsorted(self.edges_tokens, prompt_tokens, side="left")]


def predict_output(prompt_tokens: IntArray, reference_prompts: IntArray, reference_outputs: IntArray) -> FloatArray:
    """(n,) mean output in the reference, by decile of its prompts, for each of (n,) ``prompt_tokens``."""
    return OutputPredictor.fit(reference_prompts, reference_outputs).predict(prompt_tokens)
