"""A small card of the tests' own, so that shipped cards may change without them."""

from __future__ import annotations

from pathlib import Path

import pytest

MINI = """\
description: Four machines of two kinds, every role among them.
cluster:
  model: llama2-70b
  machines:
    - {role: prompt, hardware: h100-80gb}
    - {role: prompt, hardware: a100-80gb}
    - {role: token, hardware: h100-80gb}
    - {role: mixed, hardware: a100-80gb}
  switch_s: 1.0
workload: {source: synthetic, arrivals: {process: poisson}, lengths: azure-conversation, rate_rps: 8}
episode: {warmup_s: 5, horizon_s: 35, drain_s: 300, tick_s: 2}
defaults: {kind: routing, warmup_policy: jsq-tokens, other: splitwise}
"""


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cards") / "Mini.yaml"
    path.write_text(MINI)
    return path
