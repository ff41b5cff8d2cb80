"""Which prompts begin alike: the named blocks of a trace's prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from splitgym.errors import SplitgymError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prefixes:
    """Each prompt's full blocks of ``block_tokens`` from its beginning on, by name.

    A name stands for its block *and all before it*, as the hashes do by which engines find them: prompts with the same
    name at a place are the same up to there.

    Raises:
        ValueError: if the arrays do not fit together or a name is negative.
    """

    block_tokens: int
    first: IntArray  # (num_requests + 1,) request i has blocks[first[i] : first[i + 1]]
    blocks: IntArray  # (num_blocks,) ≥ 0

    def __post_init__(self) -> None:
        if self.block_tokens < 1 or len(self.first) < 1 or self.first[0] != 0 or self.first[-1] != len(self.blocks):
            raise ValueError("prefixes: first must lead from 0 to the number of blocks, and a block hold a token")
        if np.any(np.diff(self.first) < 0) or np.any(self.blocks < 0):
            raise ValueError("prefixes: first must not decrease, names must not be negative")

    def take(self, rows: IntArray) -> Prefixes:
        """Those of the requests ``rows`` (n,), in that order."""
        counts = np.diff(self.first)[rows]
        first = np.concatenate([[0], np.cumsum(counts)])
        places = np.arange(first[-1]) - np.repeat(first[:-1] - self.first[rows], counts)
        return Prefixes(self.block_tokens, first, self.blocks[places])

    def of_each(self) -> list[list[int]]:
        """Each request's names."""
        return [names.tolist() for names in np.split(self.blocks, self.first[1:])[:-1]]


MOONCAKE_BLOCK_TOKENS = 512


def mooncake_prefixes(path: Path, data: bytes, prompt_tokens: IntArray) -> Prefixes | None:
    """Those of Mooncake's JSON lines, ``hash_ids`` for each block begun; None where no line has any.

    Raises:
        SplitgymError: for a line whose ``hash_ids`` are no list of whole numbers from 0.
    """
    blocks: list[int] = []
    first = [0]
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        names = json.loads(line).get("hash_ids", [])
        if not isinstance(names, list) or any(type(name) is not int or not 0 <= name < 2**63 for name in names):
            shown = repr(names)
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            raise SplitgymError(f"{path}: line {number}: hash_ids: {shown}; write a list of whole numbers from 0")
        blocks += names[: prompt_tokens[len(first) - 1] // MOONCAKE_BLOCK_TOKENS]
        first.append(len(blocks))
    if not blocks:
        return None
    return Prefixes(MOONCAKE_BLOCK_TOKENS, np.array(first, np.int64), np.array(blocks, np.int64))
