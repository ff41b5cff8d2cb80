"""A trained run as a policy: in environment and simulator the same, on clusters of other sizes, and quick."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from splitgym.cards import Card, load_card
from splitgym.errors import SplitgymError
from splitgym.learn import NO_EVALUATION, PpoSettings, load, load_policy, train
from splitgym.metrics import scorecard
from splitgym.policies import make_policy
from splitgym.policies.role_changes import after_role_changes
from splitgym.shipped import shipped_folder
from splitgym.sim.reference import ReferenceEngine
from splitgym.sim.run import run, start
from splitgym.view import ARRIVAL, MIXED, PROMPT, TICK, TOKEN

SETTINGS = PpoSettings(num_steps=64, minibatch=64, epochs=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    common: dict[str, Any] = {"num_envs": 2, "settings": SETTINGS, "evaluation": NO_EVALUATION, "progress": False}
    return {
        "routing": train("Quickstart", steps=512, out=folder / "routing", **common),
        "still": train("Quickstart", steps=512, out=folder / "still", other="jsq-tokens", **common),
        "repurposing": train("Toy", "repurposing", steps=256, out=folder / "repurposing", **common),
        "mlp": train("Toy", steps=128, out=folder / "mlp", network="mlp", **common),
    }


def assert_decide_alike(run_dir: Path, card: Card, **arguments: Any) -> None:
    """One episode through Gymnasium and torch, one through the simulator and NumPy: the same run."""
    environment = gymnasium.make("splitgym/Cluster-v0", card=card, split="val", horizon_s=60.0, **arguments)
    agent = load(run_dir, environment)
    observation, _ = environment.reset(seed=7)
    while True:
        masks = environment.unwrapped.action_masks()  # type: ignore[attr-defined]
        action, _ = agent.predict(observation, deterministic=True, action_masks=masks)  # type: ignore[call-arg]
        observation, _, terminated, truncated, info = environment.step(action)
        if terminated or truncated:
            break
    scenario = card.scenario(7, "val", horizon_s=60.0)
    policy = load_policy(run_dir, decision="argmax")
    result = run(scenario, policy, warmup_policy=make_policy(card.defaults.warmup_policy or ""))
    assert scorecard(result.rows, scenario, result.meters) == info["scorecard"]


def test_agent_and_policy_decide_alike(trained: dict[str, Path]) -> None:
    assert_decide_alike(trained["still"], load_card("Quickstart"), kind="routing", other="jsq-tokens")


@pytest.mark.parametrize("heads", ["both", "prompt"])
def test_token_machines_chosen_late(tmp_path: Path, heads: str) -> None:
    text = (shipped_folder("envs") / "Quickstart.yaml").read_text()
    path = tmp_path / "Late.yaml"
    path.write_text(text.replace("cluster:\n", "cluster:\n  token_choice: prompt_end\n"))
    common: dict[str, Any] = {"num_envs": 2, "settings": SETTINGS, "evaluation": NO_EVALUATION, "progress": False}
    environment = {"heads": heads}
    out = train(path, steps=256, out=tmp_path / "run", other="jsq-tokens", environment=environment, **common)
    assert_decide_alike(out, load_card(path), kind="routing", other="jsq-tokens", heads=heads)


def test_equal_runs_decide_alike_and_sampling_follows_the_seed(trained: dict[str, Path]) -> None:
    policy = load_policy(trained["routing"], decision="sample")
    card = load_card("Quickstart")
    scenario = card.scenario(0, "val", horizon_s=40.0)
    rows = [run(scenario, policy).rows for _ in range(2)]
    np.testing.assert_array_equal(rows[0].token_machine, rows[1].token_machine)
    import dataclasses

    other = run(dataclasses.replace(scenario, seed=1), policy).rows
    assert (other.prompt_machine[:50] != rows[0].prompt_machine[:50]).any()


def test_it_plays_on_clusters_of_other_sizes(trained: dict[str, Path]) -> None:
    environment = gymnasium.make("splitgym/SplitwiseHH-Routing-v0", horizon_s=21.0)
    agent = load(trained["routing"], environment)
    observation, _ = environment.reset(seed=0)
    action, _ = agent.predict(observation, deterministic=True)
    assert environment.action_space.contains(action)
    scenario = load_card("SplitwiseHH").scenario(0, "val", horizon_s=21.0)
    rows = run(scenario, load_policy(trained["routing"], decision="sample")).rows
    assert len(np.unique(rows.prompt_machine)) > 10


def test_a_perceptron_does_not(trained: dict[str, Path]) -> None:
    with pytest.raises(SplitgymError, match="trained on 2 machines, here are 40"):
        load_policy(trained["mlp"]).reset(load_card("SplitwiseHH").default_cluster, 0)
    with pytest.raises(SplitgymError, match="was trained on 2 machines"):
        load(trained["mlp"], gymnasium.make("splitgym/SplitwiseHH-Routing-v0"))


def test_repurposing_routes_by_its_other_policy(trained: dict[str, Path]) -> None:
    policy = load_policy(trained["repurposing"])
    scenario = load_card("Toy").scenario(0, "val")
    result = run(scenario, policy)
    alone = run(scenario, make_policy("splitwise"))
    assert len(result.rows.arrival_s) == len(alone.rows.arrival_s)


def test_make_policy_finds_a_run(trained: dict[str, Path]) -> None:
    policy = make_policy(str(trained["routing"]))
    assert policy.name == "routing"


def test_the_stored_decision_is_obeyed_and_a_wrong_one_told(trained: dict[str, Path]) -> None:
    assert load_policy(trained["routing"])._mode == "sample"  # what a run without validation keeps
    with pytest.raises(SplitgymError, match="decision 'guess'; one of: argmax, sample"):
        load_policy(trained["routing"], decision="guess")  # type: ignore[arg-type]


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(SplitgymError, match=r"no run\.yaml there"):
        load_policy(tmp_path)
    (tmp_path / "run.yaml").write_text("card: [")
    with pytest.raises(SplitgymError, match=r"run\.yaml"):
        load_policy(tmp_path)
    (tmp_path / "run.yaml").write_text("card: Toy")
    with pytest.raises(SplitgymError, match="missing or unknown"):
        load_policy(tmp_path)


def test_a_decision_takes_less_than_a_millisecond(trained: dict[str, Path]) -> None:
    policy = load_policy(trained["routing"], decision="sample")
    scenario = load_card("Quickstart").scenario(0, "val")
    engine = ReferenceEngine(scenario)
    start(policy, scenario)
    view = engine.advance()
    assert view is not None
    while view.kind == TICK:
        view = engine.advance()
    began = time.process_time()
    for _ in range(300):
        policy.decide(view)
    assert (time.process_time() - began) / 300 < 1e-3


def test_a_view_after_role_changes_is_the_engines() -> None:
    """On a busy cluster: the masks permit only what the engine's do, and are equal where nothing is in doubt."""
    scenario = load_card("Quickstart").scenario(1, "val", horizon_s=40.0)
    engine = ReferenceEngine(scenario)
    policy = make_policy("jsq-tokens")
    start(policy, scenario)
    rng = np.random.default_rng(0)
    changed = equal = 0
    while (view := engine.advance()) is not None:
        choices = np.argwhere(view.role_mask) if view.kind == ARRIVAL else []
        if len(choices) and rng.random() < 0.3:
            machine, role = map(int, choices[rng.integers(len(choices))])
            guess = after_role_changes(view, [(machine, role)])
            engine.change_roles(((machine, role),))
            true = engine.view()
            changed += 1
            assert not (guess.prompt_mask & ~true.prompt_mask).any()
            assert not (guess.token_mask & ~true.token_mask).any()
            assert role in (PROMPT, TOKEN, MIXED)
            same = np.array_equal(guess.machines, true.machines) and np.array_equal(guess.cluster, true.cluster)
            equal += same
            if role == MIXED:
                assert same
                np.testing.assert_array_equal(guess.role_mask, true.role_mask)
            view = true
        engine.decide(policy.decide(view))
    assert changed > 50
    assert equal > 0.5 * changed
