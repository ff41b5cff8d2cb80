"""What a learner sees of prefix caching."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from splitgym.envs import ClusterEnv, ClusterVectorEnv
from splitgym.features import MACHINE_COLUMN
from tests.envs.conftest import MINI

HIT = MACHINE_COLUMN["prefix_hit_tokens"]


@pytest.fixture
def caching(tmp_path: Path) -> Path:
    """The small card under discipline vllm, with a trace of four kinds of prompts."""
    rng = np.random.default_rng(3)
    lines = []
    for number in range(600):
        kind, shared = int(rng.integers(4)), int(rng.integers(1, 4))
        hashes = [10 * kind + place for place in range(shared)] + [1000 + number]
        line = {"timestamp": 125 * number, "input_length": 512 * len(hashes) + 7, "output_length": 30}
        lines.append(json.dumps(line | {"hash_ids": hashes}) + "\n")
    (tmp_path / "trace.jsonl").write_text("".join(lines))
    text = MINI.replace("  switch_s", "  batching: {discipline: vllm, prefix_caching: true}\n  switch_s")
    begin, end = text.index("workload:"), text.index("episode:")
    text = text[:begin] + "workload: {source: trace, path: trace.jsonl, rate_rps: 3}\n" + text[end:]
    path = tmp_path / "Caching.yaml"
    path.write_text(text)
    return path


def test_hits_are_seen_alike_in_one_and_in_many(caching: Path) -> None:
    vector = ClusterVectorEnv(2, caching)
    alone = [ClusterEnv(caching) for _ in range(2)]
    seen, _ = vector.reset(seed=5)
    single = [env.reset(seed=5 + n)[0] for n, env in enumerate(alone)]
    rng, hits = np.random.default_rng(0), 0
    for _ in range(60):
        for n in range(2):
            for name, values in single[n].items():
                np.testing.assert_array_equal(seen[name][n], values)
        hits += int((seen["machines"][:, :, HIT] > 0).sum())
        heads = vector.setting.actions.by_head(vector.action_masks())
        actions = np.stack([(rng.random(head.shape) * head).argmax(axis=1) for head in heads], axis=1)
        seen, _, terminated, truncated, _ = vector.step(actions)
        assert not (terminated | truncated).any()
        single = [env.step(actions[n])[0] for n, env in enumerate(alone)]
    assert hits > 60
