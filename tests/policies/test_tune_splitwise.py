"""The tuning script finds something and writes a card that loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from splitgym.policies import make_policy

SCRIPT = Path(__file__).parents[2] / "experiments" / "tune_splitwise.py"


def test_the_card_it_writes_loads(tmp_path):
    out = tmp_path / "tuned.yaml"
    grid = ["--prompt-threshold-tokens", "2048", "--tbt-slowdown", "1.5", "2"]
    command = [
        sys.executable,
        str(SCRIPT),
        "--cards",
        "Toy",
        "--seeds",
        "1",
        "--horizon-s",
        "20",
        *grid,
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("of the published scheduler's slowdown") == 2
    policy = make_policy(str(out))
    assert policy.params["prompt_threshold_tokens"] == 2048
    assert policy.params["tbt_slowdown"] in (1.5, 2.0)
