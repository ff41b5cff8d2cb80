import numpy as np
import pytest

from splitgym.envs import ClusterEnv
from splitgym.envs.actions import BOTH_MACHINES, MACHINE_ROLE, ROLE_PAIRS, Actions, replace
from splitgym.errors import SplitgymError
from splitgym.policies import BasePolicy
from splitgym.view import MIXED, PROMPT, TOKEN, Decision
from tests.envs.play import play, sampler, shortest


def roles_of(env):
    return [state.role for state in env._episode.engine.state()]


def test_routing_sends_requests_where_the_action_says(mini):
    env = ClusterEnv(mini, other="static")
    env.reset(seed=1)
    chosen = []
    for step in range(20):
        action = np.array([step % 2, 2 + step % 2])
        chosen.append(action.tolist())
        first = env._episode.engine.pending_request
        env.step(action)
        rows = env._episode.engine.rows()
        assert [rows.prompt_machine[first], rows.token_machine[first]] == chosen[-1]


@pytest.mark.parametrize("heads", ["prompt", "token"])
def test_one_head_leaves_the_other_machine_to_the_other_policy(mini, heads):
    env = ClusterEnv(mini, heads=heads, other="jsq-tokens")
    _, info = env.reset(seed=1)
    for _ in range(20):
        suggested = env.suggested
        first = env._episode.engine.pending_request
        action = int(np.flatnonzero(info["action_mask"])[-1])
        *_, info = env.step(action)
        rows = env._episode.engine.rows()
        pair = (rows.prompt_machine[first], rows.token_machine[first])
        expected = (action, suggested.token_machine) if heads == "prompt" else (suggested.prompt_machine, action)
        assert pair == expected


def test_a_policy_without_machines_cannot_be_the_other_head(mini):
    class Pool(BasePolicy):
        name = "pool"

        def decide(self, view):
            return Decision()

    env = ClusterEnv(mini, heads="prompt", other=Pool())
    env.reset(seed=1)
    with pytest.raises(SplitgymError, match=r"policy 'pool', request .*token machine -1 does not exist"):
        env.step(0)


def test_repurposing_changes_the_role_it_names(mini):
    env = ClusterEnv(mini, kind="repurposing")
    env.reset(seed=1)
    assert roles_of(env) == ["prompt", "prompt", "token", "mixed"]
    env.step(1 + 3 * 1 + MIXED)
    assert roles_of(env) == ["prompt", "mixed", "token", "mixed"]
    env.step(0)
    assert roles_of(env) == ["prompt", "mixed", "token", "mixed"]


def test_pool_action_takes_the_machine_with_least_work(mini):
    env = ClusterEnv(mini, kind="repurposing", action="pool", machines="prompt=3:h100-80gb,token=2:a100-80gb")
    _, info = env.reset(seed=1)
    assert env.action_space.n == 1 + 6 * 2
    h100_prompt_to_mixed = 1 + ROLE_PAIRS.index((PROMPT, MIXED))
    a100_token_to_mixed = 1 + 6 + ROLE_PAIRS.index((TOKEN, MIXED))
    assert info["action_mask"][[0, h100_prompt_to_mixed, a100_token_to_mixed]].tolist() == [1, 1, 1]
    assert info["action_mask"][1 + 6 + ROLE_PAIRS.index((PROMPT, MIXED))] == 0  # no such machine
    work = env.view["pending_prompt_tokens"] + env.view["remaining_output_tokens"]
    least = 3 + int(work[3:].argmin())
    env.step(a100_token_to_mixed)
    assert [index for index, role in enumerate(roles_of(env)) if role == "mixed"] == [least]


def test_joint_heads_that_are_not_due_have_only_index_0(mini):
    env = ClusterEnv(mini, kind="joint")
    _, info = env.reset(seed=1)
    act, seen = sampler(0, env), set()
    for _ in range(100):
        prompt, token, role = info["action_mask"]
        due = info["decision_kind"]
        seen.add(due)
        idle = (prompt, token) if due == "tick" else (role,)
        assert all(mask.tolist() == [1] + [0] * (len(mask) - 1) for mask in idle)
        *_, info = env.step(act(env.view))
    assert seen == {"arrival", "tick"}


def test_an_invalid_action_becomes_any_valid_one_alike(mini):
    env = ClusterEnv(mini)
    env.reset(seed=1)
    rules = Actions(BOTH_MACHINES, env.cluster, 4).rules
    valid = env.action_masks()
    draws = np.zeros((6000, 2), np.int64)
    for number, choice in enumerate(draws):
        replace(rules, False, choice, valid, 17, number)
    pairs, counts = np.unique(draws, axis=0, return_counts=True)
    assert len(pairs) == valid[:4].sum() * valid[4:].sum() == 6
    assert valid[:4][pairs[:, 0]].all() and valid[4:][pairs[:, 1]].all()
    # each is binomial(6000, 1/6): five standard deviations are 144
    assert np.abs(counts - 1000).max() < 144


def test_invalid_actions_are_counted_and_change_no_role(mini):
    env = ClusterEnv(mini, kind="repurposing")
    _, info = env.reset(seed=1)
    stays = 1 + 3 * 0 + PROMPT  # already has the role
    assert info["action_mask"][stays] == 0
    for step in range(1, 5):
        *_, info = env.step(stays)
        assert info["invalid_actions"] == step
    assert roles_of(env) == ["prompt", "prompt", "token", "mixed"]


def test_replacements_are_no_heuristics_and_reproducible(mini):
    invalid = np.array([2, 0])  # a prompt to the token machine
    runs = [play(ClusterEnv(mini, other="static"), lambda view: invalid, seed=5) for _ in range(2)]
    good = play(ClusterEnv(mini, other="static"), shortest, seed=5)
    assert runs[0]["rewards"] == runs[1]["rewards"]
    assert runs[0]["invalid_actions"] == len(runs[0]["rewards"])
    assert runs[0]["scorecard"]["slowdown"] > 1.2 * good["scorecard"]["slowdown"]


@pytest.mark.parametrize("action", [np.array([0, 4]), np.array([-1, 0]), 3, np.array([0.0, 1.0]), "x", None])
def test_an_action_outside_the_space_is_a_mistake(mini, action):
    env = ClusterEnv(mini)
    env.reset(seed=1)
    with pytest.raises(SplitgymError, match=r"is not in MultiDiscrete\(\[4 4\]\)"):
        env.step(action)


def test_role_actions_follow_the_view(mini):
    env = ClusterEnv(mini, kind="repurposing")
    env.reset(seed=1)
    (mask,) = Actions(MACHINE_ROLE, env.cluster, 4).masks(env.view)
    assert mask[0] and np.array_equal(mask[1:].reshape(4, 3), env.view.role_mask)
