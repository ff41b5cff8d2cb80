import subprocess
import sys

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from splitgym.envs import ClusterEnv
from splitgym.errors import SplitgymError
from splitgym.policies import make_policy
from splitgym.sim.run import run
from splitgym.view import ARRIVAL, MIXED, TICK, Decision
from splitgym.workload import write_trace
from tests.envs.play import play, sampler, shortest


def equal(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("policy", ["splitwise", "jsq-tokens", "lmetric"])
def test_an_environment_is_the_run_it_wraps(mini, policy):
    """A policy played through the environment has the scorecard that `run` gives it."""
    env = ClusterEnv(mini, other=policy, split="test")
    played = play(
        env,
        lambda view: np.array([env.suggested.prompt_machine, env.suggested.token_machine]),
        seed=9,
    )
    scenario = env.card.scenario(9, "test")
    alone = run(scenario, make_policy(policy), warmup_policy=make_policy("jsq-tokens"))
    assert np.array_equal(env._episode.engine.rows().finish_s, alone.rows.finish_s, equal_nan=True)
    assert np.array_equal(env._episode.engine.rows().prompt_machine, alone.rows.prompt_machine)
    assert played["invalid_actions"] == 0


def test_warm_up_is_over_before_the_first_step(mini):
    env = ClusterEnv(mini)
    _, info = env.reset(seed=1)
    before = np.searchsorted(env.scenario.requests.arrival_s, 5.0)
    assert info["time_s"] == env.scenario.requests.arrival_s[before] >= 5.0
    assert info["dt_s"] == 0.0
    assert env._episode.engine.pending_request == before
    played = play(env, shortest, seed=1)
    assert len(played["rewards"]) == len(env.scenario.requests) - before


def test_times_in_info_follow_the_arrivals(mini):
    env = ClusterEnv(mini)
    _, info = env.reset(seed=1)
    times, spans = [info["time_s"]], []
    over = False
    while not over:
        _, _, terminated, over, info = env.step(shortest(env.view))
        times.append(info["time_s"])
        spans.append(info["dt_s"])
    arrival_s = env.scenario.requests.arrival_s
    assert times[:-1] == arrival_s[arrival_s >= 5.0].tolist()
    assert times[-1] == 35.0 and not terminated
    assert spans == pytest.approx(np.diff(times).tolist(), abs=1e-12)


def test_ticks_of_repurposing(mini):
    env = ClusterEnv(mini, kind="repurposing")
    played = play(env, lambda view: 0, seed=1)
    assert len(played["rewards"]) == 15  # at 6, 8, …, 34 s
    assert played["truncated"] and not played["terminated"]


def test_the_final_observation_is_the_state_at_the_horizon(mini):
    env = ClusterEnv(mini)
    env.reset(seed=1)
    over = False
    while not over:
        observation, _, _, over, info = env.step(shortest(env.view))
        if not over:
            before = observation
    assert info["time_s"] == 35.0
    assert observation in env.observation_space
    assert observation["decision_kind"].tolist() == [1, 0, 0]  # as a routing learner knows it
    median = np.median(env.scenario.requests.prompt_tokens)
    assert observation["request"][0] == pytest.approx(int(median) / (int(median) + 1024.0), rel=1e-6)
    assert not np.array_equal(observation["machines"], before["machines"])
    assert all(mask.any() for mask in info["action_mask"])
    with pytest.raises(ResetNeeded):
        env.step(np.array([0, 2]))


def test_a_trace_runs_until_all_is_done(mini, tmp_path):
    requests = ClusterEnv(mini).card.scenario(3, "train").requests
    write_trace(requests, tmp_path / "trace.csv")
    for trace in (requests, tmp_path / "trace.csv", str(tmp_path / "trace.csv")):
        env = ClusterEnv(mini)
        played = play(env, shortest, seed=1, options={"trace": trace})
        assert played["terminated"] and not played["truncated"]
        assert len(played["rewards"]) == len(requests)
        assert played["scorecard"]["completed_fraction"] == 1.0
    env = ClusterEnv(mini, horizon_s=12.0)
    assert play(env, shortest, options={"trace": requests})["truncated"]
    assert env.scenario.horizon_s == 12.0


def test_an_episode_without_decisions_ends_with_its_first_step(mini):
    env = ClusterEnv(mini, rate=1e-4)
    _, info = env.reset(seed=0)
    assert len(env.scenario.requests) == 0
    observation, reward, terminated, truncated, info = env.step(np.array([0, 2]))
    assert observation in env.observation_space
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert "scorecard" in info


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tracee": 1}, "options: unknown 'tracee'; did you mean 'trace'?"),
        ({"trace": 7}, "options: trace is 7"),
        ({"trace": "no-such-file.csv"}, "no-such-file.csv"),
    ],
)
def test_options_that_make_no_sense(mini, options, message):
    with pytest.raises(SplitgymError) as error:
        ClusterEnv(mini).reset(options=options)
    assert message in str(error.value) and "\n" not in str(error.value)


# --- who decides what -------------------------------------------------------------------------------------------


class Restless:
    """Makes machine 1 mixed at the first arrival after 10 s, and says so."""

    name = "restless"

    def reset(self, cluster, seed):
        self.done_s = None
        self.saw_roles = False

    def decide(self, view):
        self.saw_roles = self.saw_roles or bool(view.role_mask.any())
        changes = ()
        if view.kind == ARRIVAL and view.time_s > 10 and self.done_s is None and view.role_mask[1, MIXED]:
            self.done_s, changes = view.time_s, ((1, MIXED),)
        if view.kind == TICK:
            return Decision(role_changes=changes)
        return Decision(int(view.prompt_mask.argmax()), int(view.token_mask.argmax()), changes)


def test_roles_that_the_other_changes_are_seen_at_the_same_arrival(mini):
    other = Restless()
    env = ClusterEnv(mini, other=other)
    _, info = env.reset(seed=1)
    while other.done_s is None:
        observation, *_, info = env.step(shortest(env.view))
    assert info["time_s"] == other.done_s
    assert observation["machines"][1, :3].tolist() == [0, 0, 1]
    assert info["action_mask"][1][1] == 1  # tokens may go there now
    env.step(np.array([1, 1]))
    assert env._episode.decisions[-1] == Decision(1, 1)


def test_repurposing_roles_are_the_learners_alone(mini):
    class Stubborn(Restless):
        """Does not look at masks."""

        def decide(self, view):
            decision = super().decide(view)
            return Decision(decision.prompt_machine, decision.token_machine, ((1, MIXED),))

    other = Stubborn()
    env = ClusterEnv(mini, kind="repurposing", other=other)
    play(env, lambda view: 0, seed=1)
    assert not other.saw_roles
    assert [state.role for state in env._episode.engine.state()] == ["prompt", "prompt", "token", "mixed"]


def test_a_broken_other_is_named(mini):
    class Broken(Restless):
        name = "broken"

        def decide(self, view):
            return Decision(99, 99)

    env = ClusterEnv(mini, kind="repurposing", other=Broken())
    with pytest.raises(SplitgymError, match=r"policy 'broken', request .* prompt machine 99 does not exist"):
        env.reset(seed=1)


# --- seeds --------------------------------------------------------------------------------------------------------


def test_a_seed_is_a_scenario(mini):
    env = ClusterEnv(mini, split="val")
    env.reset(seed=12)
    expected = env.card.scenario(12, "val")
    assert np.array_equal(env.scenario.requests.arrival_s, expected.requests.arrival_s)
    other = ClusterEnv(mini, split="train")
    other.reset(seed=12)
    assert not np.array_equal(env.scenario.requests.prompt_tokens[:50], other.scenario.requests.prompt_tokens[:50])


def test_resets_without_a_seed_differ_and_repeat(mini):
    def seeds(env):
        env.reset(seed=5)
        return [(env.reset(), env.scenario.seed)[1] for _ in range(4)]

    first = seeds(ClusterEnv(mini))
    assert len(set(first)) == 4
    assert first == seeds(ClusterEnv(mini))
    env = ClusterEnv(mini)  # what happens in an episode does not change the next
    env.reset(seed=5)
    act = sampler(0, env, masked=False)
    for _ in range(10):
        env.step(act(env.view))
    env.reset()
    assert env.scenario.seed == first[0]


def test_a_group_shares_its_arrivals(mini):
    envs = [ClusterEnv(mini, arrival_group=group) for group in (1, 1, 2)]
    traces = []
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
        traces.append([env.scenario.requests.arrival_s[0]])
        env.reset()
        traces[-1].append(env.scenario.requests.arrival_s[0])
    assert traces[0] == traces[1]
    assert len({*traces[0], *traces[2]}) == 4


@pytest.mark.parametrize("kind", ["routing", "repurposing", "joint"])
def test_engines_give_the_same_episode(mini, kind):
    def played(engine):
        env = ClusterEnv(mini, kind=kind, engine=engine, record=True)
        result = play(env, sampler(2, env), seed=8)
        return result["rewards"], result["scorecard"], env.recorder.digest()

    assert played("reference") == played("compiled")


@pytest.mark.parametrize("kind", ["routing", "repurposing", "joint"])
def test_same_seed_same_trajectory_whatever_ran_before(mini, kind):
    def trajectory(env):
        act = sampler(2, env, masked=False)
        observation, _ = env.reset(seed=8)
        steps, over = [observation], False
        while not over:
            observation, reward, terminated, truncated, info = env.step(act(env.view))
            steps.append((observation, reward, info["time_s"], info["invalid_actions"]))
            over = terminated or truncated
        return steps, info["scorecard"], env.recorder.digest()

    first = trajectory(ClusterEnv(mini, kind=kind, record=True))
    env = ClusterEnv(mini, kind=kind, record=True)
    play(env, sampler(99, env), seed=8)
    play(env, sampler(98, env), seed=9)
    second = trajectory(env)
    assert first[1:] == second[1:]
    assert all(equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(first[0][1:], second[0][1:], strict=True))


DIGEST = """
import sys
from splitgym.envs import ClusterEnv
from tests.envs.play import play, sampler
env = ClusterEnv(sys.argv[1], kind="joint", record=True)
if sys.argv[2] == "after":
    play(env, sampler(5, env), seed=3)
play(env, sampler(4, env), seed=8)
print(env.recorder.digest())
"""


def test_two_processes_have_the_same_event_log(mini, request):
    digests = {
        subprocess.check_output([sys.executable, "-c", DIGEST, str(mini), when], cwd=request.config.rootpath)
        for when in ("alone", "after")
    }
    assert len(digests) == 1


# --- state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["routing", "repurposing", "joint"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_restore_is_as_if_nothing_had_happened(mini, kind, elsewhere):
    env = ClusterEnv(mini, kind=kind, other=None if kind == "joint" else "power-of-two")
    act = sampler(6, env, masked=False)
    env.reset(seed=4)
    for _ in range(8):
        observation, *_ = env.step(act(env.view))
    state = env.clone_state()
    actions = [act(env.view) for _ in range(5)]
    after = [env.step(action) for action in actions]
    following = env.reset()
    if elsewhere:
        env = ClusterEnv(mini, kind=kind, other=None if kind == "joint" else "power-of-two")
        env.reset(seed=77)
    assert equal(env.restore_state(state), observation)
    again = [env.step(action) for action in actions]
    for one, other in zip(after, again, strict=True):
        assert equal(one[0], other[0])
        assert one[1:4] == other[1:4]
        assert one[4]["invalid_actions"] == other[4]["invalid_actions"]
        assert one[4]["dt_s"] == other[4]["dt_s"]
    assert equal(env.reset()[0], following[0])


def test_nothing_to_clone_or_step_before_reset(mini):
    env = ClusterEnv(mini)
    for call in (env.clone_state, lambda: env.step(np.array([0, 2])), lambda: env.view):
        with pytest.raises(ResetNeeded):
            call()
