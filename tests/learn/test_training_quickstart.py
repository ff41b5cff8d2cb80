"""The promise of `Quickstart`: three training seeds on twenty test seeds. It takes a quarter of an hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitgym.learn import NO_EVALUATION, EvaluationPlan, PpoSettings, compare, train

pytestmark = pytest.mark.thousand


def test_trained_agents_close_the_gap_to_the_best_heuristic_and_untrained_ones_do_not(tmp_path: Path) -> None:
    plan = EvaluationPlan(every=0, references=())
    runs = [
        train("Quickstart", seed=seed, out=tmp_path / f"seed{seed}", evaluation=plan, progress=False)
        for seed in range(3)
    ]
    still = PpoSettings(learning_rate=0.0)
    untrained = train(
        "Quickstart", steps=1, out=tmp_path / "untrained", settings=still, evaluation=NO_EVALUATION, progress=False
    )
    comparison = compare(
        "Quickstart", ["ppo=" + ",".join(map(str, runs)), f"untrained={untrained}", "heuristics"], seeds=20
    )
    scores = {verdict.policy: verdict.score for verdict in comparison.verdicts}
    assert scores["ppo"] is not None and scores["untrained"] is not None
    assert scores["ppo"].low >= 0.9
    assert scores["untrained"].value < 0.2
