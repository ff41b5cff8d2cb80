"""The scorer in py-inference-scheduler's own scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitgym.sim import books as b
from tests.integrations.conftest import ConfigFile

pytest.importorskip("py_inference_scheduler", reason="pip install py-inference-scheduler: see make test-integrations")

import yaml
from py_inference_scheduler import Endpoint, LLMRequest, Scheduler

from splitgym.integrations.py_inference_scheduler import SplitgymScorer


def scheduler_of(tmp_path: Path, config: str) -> tuple[Scheduler, SplitgymScorer]:
    """From a configuration file of its own."""
    scorers = [{"type": "splitgym", "config": config, "weight": 1.0}]
    content = {"profile_handler": {"type": "single_profile"}, "profiles": {"default": {"scorers": scorers}}}
    (tmp_path / "scheduler.yaml").write_text(yaml.safe_dump(content), "utf-8")
    scheduler = Scheduler(str(tmp_path / "scheduler.yaml"))
    scheduler._maybe_reload_config()
    scorer = scheduler.profiles["default"].scorers[0].scorer
    assert isinstance(scorer, SplitgymScorer)
    return scheduler, scorer


def endpoints(counts: dict[str, Any]) -> list[Endpoint]:
    return [Endpoint(name, {"queue_len": count}) for name, count in counts.items()]


def test_spreads_and_forgets_what_is_over(config_file: ConfigFile, tmp_path: Path) -> None:
    scheduler, scorer = scheduler_of(tmp_path, config_file())
    counts = {"one": 0, "replica-x": 0, "replica-y": 0}  # known by name, and two that take the free rows
    for number in range(6):
        request = LLMRequest(str(number), body={"prompt": [1] * 50, "max_tokens": 5})
        chosen = scheduler.run(request, endpoints(counts))[0].endpoint.name
        counts[chosen] += 1
    assert counts == {"one": 2, "replica-x": 2, "replica-y": 2}
    assert scorer.chooser.books.rows[:, b.PENDING_TOKENS].tolist() == [100, 100, 100]
    counts["replica-y"] = 0
    assert scheduler.run(LLMRequest("7", body="x"), endpoints(counts))[0].endpoint.name == "replica-y"


def test_reads_the_engines_numbers(config_file: ConfigFile, tmp_path: Path) -> None:
    scheduler, scorer = scheduler_of(tmp_path, config_file("least-kv"))
    stats = {"num_running_reqs": 3, "num_waiting_reqs": 1, "kv": 0.25}
    scheduler.run(LLMRequest("1", body="x"), [Endpoint("two", {"routing_stats": stats})])
    row = scorer.chooser.books.rows[1]
    assert (row[b.RUNNING], row[b.WAITING]) == (3, 1)
    assert row[b.KV_HELD] == pytest.approx(0.25 * scorer.chooser.books.capacities[1])


def test_an_endpoint_that_counts_nothing(
    config_file: ConfigFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scheduler prints what a scorer raises, and names no endpoint."""
    scheduler, _ = scheduler_of(tmp_path, config_file())
    assert scheduler.run(LLMRequest("1", body="x"), [Endpoint("one")]) == []
    assert "neither queue_len nor routing_stats" in capsys.readouterr().out
