"""The benchmark measures what it says: tiny runs of each measurement, the picture, mistakes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from splitgym.cards import load_card

SCRIPT = Path(__file__).parents[1] / "experiments" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_the_trace_is_laid_end_to_end(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "TRACE", Path("absent"))
    card = load_card(benchmark.CARD)
    usual, what = benchmark.offered(card, benchmark.USUAL, 20_000)
    assert "absent" in what
    assert len(usual) == 20_000
    period = 70 * 120
    assert usual.arrival_s[period - 1] == pytest.approx(120)
    np.testing.assert_array_equal(usual.prompt_tokens[period : 2 * period], usual.prompt_tokens[:period])
    np.testing.assert_allclose(usual.arrival_s[period : 2 * period] - usual.arrival_s[:period], 120, rtol=0, atol=1e-9)
    large, _ = benchmark.offered(card, 1000, 20_000)
    np.testing.assert_allclose(large.arrival_s * 25, usual.arrival_s, rtol=1e-12)


def test_every_size_has_the_same_load_and_as_many_requests(benchmark: ModuleType) -> None:
    for machines, (prompt, token) in benchmark.SPLITS.items():
        assert prompt + token == machines
        assert prompt / machines == pytest.approx(25 / 40, abs=0.03)  # 5 machines cannot be split exactly
        loaded = benchmark.loaded(machines)
        assert loaded["card"].build_cluster().num_machines == machines
        assert loaded["rate"] / machines == pytest.approx(110 / 40)
        assert loaded["rate"] * loaded["card"].episode.horizon_s == pytest.approx(110 * 80)
    assert benchmark.episode_decisions("routing") == 110 * 60
    assert benchmark.episode_decisions("joint") == 110 * 60 + 12


def test_random_actions_are_valid_and_reach_every_choice(benchmark: ModuleType) -> None:
    rng = np.random.default_rng(0)
    masks = np.tile(np.array([True, False, True, False, True, True, False]), (500, 1))
    actions = benchmark.random_actions(masks, [3, 4], rng)
    assert actions.shape == (500, 2)
    assert [set(column.tolist()) for column in actions.T] == [{0, 2}, {1, 2}]
    assert set(benchmark.random_actions(masks, [7], rng).tolist()) == {0, 2, 4, 5}


def test_simulation_compares_the_rows(benchmark: ModuleType) -> None:
    found = benchmark.simulation(machines=5, requests=300, reference_requests=200, repeats=1)
    assert found["rows_identical"]
    assert found["ratio_to_reference"] == found["requests_per_s"] / found["reference_requests_per_s"]

    requests, _ = benchmark.offered(load_card("SplitwiseHH"), 5, 50)
    from splitgym.policies import make_policy
    from splitgym.sim.cluster import Scenario
    from splitgym.sim.run import run

    rows = run(Scenario(load_card("SplitwiseHH").default_cluster, requests), make_policy("splitwise")).rows
    assert benchmark.identical(rows, rows)
    later = dataclasses.replace(rows, finish_s=np.nextafter(rows.finish_s, np.inf))
    assert not benchmark.identical(rows, later)


def test_events_of_the_clock(benchmark: ModuleType) -> None:
    # An arrival, a prompt iteration and a transfer for nearly all, and decode iterations shared by some.
    assert 4 < benchmark.events(machines=5, requests=300)["events_per_request"] < 50


def test_the_shared_network_beside_the_ideal_one(benchmark: ModuleType) -> None:
    usual, slow = (
        benchmark.network(machines=5, requests=300, link_share=share, repeats=1) for share in benchmark.LINK_SHARES
    )
    # links of their own bandwidth are hardly used: the same events; a hundredth makes for far more iterations
    assert usual["shared_time_per_event"] == pytest.approx(usual["shared_time_per_request"], rel=0.02)
    assert slow["shared_time_per_event"] < 0.9 * slow["shared_time_per_request"]


@pytest.mark.parametrize("kind", ["routing", "repurposing", "joint"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_decisions(benchmark: ModuleType, kind: str, num_envs: int) -> None:
    found = benchmark.decisions(kind=kind, num_envs=num_envs, machines=5, repeats=1, seconds=0.01)
    assert 10 < found["decisions_per_s"] < 1e7


@pytest.mark.parametrize("algorithm", ["ppo", "maskable-ppo"])
def test_training(benchmark: ModuleType, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "TRAINED", 4)
    found = benchmark.training(algorithm=algorithm, network="mlp", machines=5, num_steps=64, repeats=1)
    assert found["share_of_free"] == found["steps_per_s"] / found["free_steps_per_s"]
    assert 0.02 < found["share_of_free"] < 1.5


def test_the_free_environment_has_the_spaces_and_shapes_of_the_real_one(benchmark: ModuleType) -> None:
    from splitgym.learn.vec_env import SchedulingVecEnv

    real = SchedulingVecEnv(3, kind="routing", **benchmark.loaded(5))
    free = benchmark.free_like(real)
    assert free.observation_space == real.observation_space
    assert free.action_space == real.action_space
    assert np.stack(free.env_method("action_masks")).shape == (3, 10)
    assert free.has_attr("action_masks")
    actions = benchmark.random_actions(np.stack(real.env_method("action_masks")), [5, 5], np.random.default_rng(0))
    for one, other in zip(real.step(actions)[:3], free.step(actions)[:3], strict=True):
        parts = [(one[key], other[key]) for key in one] if isinstance(one, dict) else [(one, other)]
        assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in parts)


def test_headline_and_picture(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def made_up(measurement: Any, *, apart: bool = True, **asked: Any) -> dict[str, Any]:
        found = {
            "simulation": {"requests_per_s": 4e5, "reference_requests_per_s": 1e4, "ratio_to_reference": 40.0},
            "events": {"events_per_request": 8.0},
            "network": {
                "shared_requests_per_s": 1e5,
                "shared_time_per_request": 1.1,
                "shared_time_per_event": 0.7,
            },
            "decisions": {"decisions_per_s": 3e5, "decisions_with_resets_per_s": 2e5},
            "training": {"steps_per_s": 900.0, "free_steps_per_s": 1000.0, "share_of_free": 0.9},
        }[measurement.__name__]
        return asked | found | {"peak_rss_mb": 640.0, "rows_identical": True, "workload": "made up"}

    monkeypatch.setattr(benchmark, "measured", made_up)
    for found in (benchmark.measure_some(), benchmark.measure_all()):
        figures = benchmark.headline(found)
        assert figures["events_per_s"] == 3.2e6
        assert figures["share_at_1000_machines"] == 1.0
        assert figures["ppo_share_of_free_environment"] == 0.9
    monkeypatch.syspath_prepend(SCRIPT.parent)
    importlib.import_module("benchmark_picture").draw_scaling(found, tmp_path / "scaling.png", usual=benchmark.USUAL)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--quik"], "error: unrecognized arguments: --quik"), (["--plot", f"{__file__}/a.png"], "error: --plot")],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    done = run_script(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.mark.thousand
def test_the_quick_run_answers_with_one_object() -> None:
    done = run_script("--quick", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows_identical"]
    assert found["ratio_to_reference"] > 10
    assert found["ppo_share_of_free_environment"] > 0.6
    assert found["decisions_per_s_vector_64"] > found["reference_requests_per_s"]
    assert found["peak_rss_mb_million_requests"] < 1000


def test_mechanisms_are_measured() -> None:
    script = SCRIPT.with_name("benchmark_mechanisms.py")
    command = [sys.executable, str(script), "--requests", "100", "--repeats", "1", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["plain"]["time_per_request"] == found["plain"]["time_per_event"] == 1.0
    assert {"all of these", "vllm, all", "token machines chosen late"} < set(found)
