"""Which prompts begin alike: from a trace's lines through draws of it to the requests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from splitgym.errors import SplitgymError
from splitgym.randomness import Streams
from splitgym.workload import Prefixes, Requests, TraceWorkload, read_trace


def written(path: Path, *requests: tuple[int, int, list[int]]) -> Path:
    """A trace of (ms, prompt tokens, hashes)."""
    lines = [
        {"timestamp": ms, "input_length": tokens, "output_length": 2, "hash_ids": hashes}
        for ms, tokens, hashes in requests
    ]
    path.write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    return path


def test_full_blocks_alone_have_names(tmp_path: Path) -> None:
    prefixes = read_trace(written(tmp_path / "t", (0, 1030, [7, 8, 9]), (1, 511, [7]), (2, 1024, [7, 3]))).prefixes
    assert prefixes is not None
    assert prefixes.block_tokens == 512
    assert prefixes.of_each() == [[7, 8], [], [7, 3]]
    assert prefixes.take(np.array([2, 2, 1, 0])).of_each() == [[7, 3], [7, 3], [], [7, 8]]
    assert prefixes.take(np.array([], np.int64)).of_each() == []
    assert read_trace(written(tmp_path / "u", (0, 100, [7]))).prefixes is None


@pytest.mark.parametrize("hashes", ["7", ["a"], [-1], [1.5], [True], [2**63]])
def test_hashes_that_cannot_be(tmp_path: Path, hashes: object) -> None:
    path = tmp_path / "t"
    path.write_text(json.dumps({"timestamp": 0, "input_length": 600, "output_length": 2, "hash_ids": hashes}))
    with pytest.raises(SplitgymError, match=r"line 1: hash_ids: .*; write a list of whole numbers from 0"):
        read_trace(path)


def test_a_replay_keeps_them(tmp_path: Path) -> None:
    """At another rate, from some offset, twice round: each request has the names of the one it stands for."""
    path = written(tmp_path / "t", *[(1000 * i, 512 * (1 + i), list(range(10 * i, 10 * i + 1 + i))) for i in range(5)])
    workload = TraceWorkload(source="trace", path=path, split_trace=False)
    requests = workload.draw(Streams(0, "train"), num_requests=9, rate_rps=3.0)
    assert requests.prefixes is not None
    for tokens, names in zip(requests.prompt_tokens, requests.prefixes.of_each(), strict=True):
        assert names == list(range(10 * (tokens // 512 - 1), 10 * (tokens // 512 - 1) + tokens // 512))


def test_arrays_that_do_not_fit() -> None:
    first, blocks = np.array([0, 2, 3]), np.array([1, 2, 1])
    for wrong in ((0, first, blocks), (4, first[1:], blocks), (4, first, blocks[1:]), (4, first, -blocks)):
        with pytest.raises(ValueError, match="prefixes"):
            Prefixes(*wrong)
    with pytest.raises(ValueError, match="full blocks of each prompt"):
        Requests(np.zeros(2), np.array([7, 4]), np.ones(2, np.int64), np.ones(2), prefixes=Prefixes(4, first, blocks))
