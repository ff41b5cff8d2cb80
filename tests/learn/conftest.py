from __future__ import annotations

from pathlib import Path

import pytest

QUICK_CARD = """\
description: Two prompt and two token machines for a few seconds.
cluster:
  model: llama2-70b
  machines: [{role: prompt, hardware: h100-80gb, count: 2}, {role: token, hardware: h100-80gb, count: 2}]
workload: {source: synthetic, arrivals: {process: poisson}, lengths: azure-conversation, rate_rps: 8}
episode: {warmup_s: 2, horizon_s: 12, drain_s: 60, tick_s: 2}
defaults: {warmup_policy: jsq-tokens}
"""


@pytest.fixture(scope="session")
def quick_card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card whose runs take a few milliseconds."""
    path = tmp_path_factory.mktemp("cards") / "Quick.yaml"
    path.write_text(QUICK_CARD)
    return path
