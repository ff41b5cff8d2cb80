import numpy as np
import pytest

from splitgym.envs import REWARDS, ClusterEnv
from splitgym.envs.rewards import Reward, Step, parse_reward
from splitgym.errors import SplitgymError
from splitgym.metrics import charge
from splitgym.sim.ledger import Meters
from tests.envs.play import play, sampler, shortest

BEFORE = Meters(10.0, 100.0, 40.0, 1, 2, 7200.0, 50, 45, 900, 4000.0, 2000.0)
AFTER = Meters(12.0, 106.0, 43.0, 2, 4, 10800.0, 52, 48, 990, 6000.0, 3500.0)
STEP = Step(BEFORE, AFTER, potential_before=5.0, potential_after=6.0, gamma=0.9, usd_per_s=0.02)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slowdown", -3.0),
        ("slowdown-shaped", -3.0 - 0.9 * 6.0 + 5.0),
        ("time_in_system", -6.0),
        ("slo", -3.0),
        ("energy", -1.0),  # 3,600 J are 1 Wh
        ("cost", -4.0),  # cents
    ],
)
def test_terms(name, value):
    assert Reward(name, arrivals_per_step=1.0)(STEP) == pytest.approx(value)
    assert Reward(name, arrivals_per_step=2.5, scale=0.1)(STEP) == pytest.approx(value * 0.1 / 2.5)


def test_every_term_says_its_unit():
    assert all("Unit:" in term.__doc__ for term in REWARDS.values())


def test_sums():
    expected = {"slowdown": 1.0, "energy": 0.1}
    assert parse_reward("slowdown+0.1*energy") == expected
    assert parse_reward(" slowdown + 0.1 * energy ") == expected
    assert parse_reward(expected) == expected
    assert parse_reward("slo+slo") == {"slo": 2.0}
    assert Reward(expected, 1.0)(STEP) == pytest.approx(-3.0 - 0.1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("slodown", "reward: unknown 'slodown'; did you mean 'slowdown'?"),
        ("slowdown+x*energy", "reward: the weight of 'energy' is 'x'"),
        ("slowdown+", "reward: unknown ''"),
        ({"slowdown": "1"}, "reward: the weight of 'slowdown' is '1'"),
        ({"slowdown": float("inf")}, "reward: the weight of 'slowdown' is inf"),
        ({}, "neither a name nor weights"),
        (3, "neither a name nor weights"),
    ],
)
def test_mistakes(spec, message):
    with pytest.raises(SplitgymError) as error:
        parse_reward(spec)
    assert message in str(error.value)


def potential(env):
    return env._batch.slots["potential"][0]


def drained(mini, reward, *, gamma=0.99, kind="routing"):
    """Random decisions on the card's arrivals until all is done, and what the run left behind."""
    env = ClusterEnv(mini, kind=kind, reward=reward, gamma=gamma)
    requests = env.card.scenario(7, "train").requests
    result = play(env, sampler(1, env), seed=7, options={"trace": requests})
    assert result["terminated"]
    engine = env._episode.engine
    return env, result, engine.rows(), engine.meters()


def test_slowdown_adds_up_to_the_scorecards(mini):
    env, result, rows, _ = drained(mini, "slowdown")
    total = charge(rows, env.scenario).slowdown.sum()
    # the same integral, summed in another order
    assert -sum(result["rewards"]) == pytest.approx(total, rel=1e-9)
    assert result["scorecard"]["slowdown"] == pytest.approx(total / len(rows), rel=1e-12)


def test_time_in_system_adds_up_to_e2e(mini):
    _, result, rows, _ = drained(mini, "time_in_system")
    assert -sum(result["rewards"]) == pytest.approx(rows.e2e_s.sum(), rel=1e-9)


def test_slo_adds_up_to_what_was_missed(mini):
    env, result, rows, _ = drained(mini, "slo")
    charged = charge(rows, env.scenario)
    slo = env.cluster.slo
    token_phase = (charged.e2e_s - charged.ttft_s) / (charged.alone_e2e_s - charged.alone_ttft_s)
    missed = np.sum(charged.ttft_slowdown > slo.ttft[1]) + np.sum(token_phase > slo.tbt[1])
    assert -sum(result["rewards"]) == missed > 0


def test_energy_and_cost_add_up(mini):
    env, result, _, meters = drained(mini, {"energy": 1.0})
    start_wh = sum(machine.profile.power.idle_w for machine in env.cluster.machines) * _first_s(env) / 3600
    assert -sum(result["rewards"]) == pytest.approx(meters.energy_j / 3600 - start_wh, rel=1e-9)
    env, result, _, meters = drained(mini, "cost")
    usd_per_hour = 2 * 38 + 2 * 17.6
    assert -sum(result["rewards"]) == pytest.approx(
        100 * usd_per_hour * (meters.time_s - _first_s(env)) / 3600, rel=1e-9
    )


def _first_s(env):
    return env.scenario.requests.arrival_s[0]


@pytest.mark.parametrize("kind", ["routing", "repurposing", "joint"])
def test_shaping_is_a_potential(mini, kind):
    """Its discounted sum differs from the plain reward's by Φ of the first state, which no decision changes."""
    _, plain, *_ = drained(mini, "slowdown", kind=kind)
    for gamma in (1.0, 0.97):
        env, shaped, *_ = drained(mini, "slowdown-shaped", gamma=gamma, kind=kind)
        discounts = gamma ** np.arange(len(plain["rewards"]))
        env.reset(seed=7, options={"trace": env.scenario.requests})
        start = potential(env) * env.setting.reward.mix.factors[0]
        assert shaped["rewards"] != plain["rewards"]
        assert discounts @ shaped["rewards"] == pytest.approx(discounts @ plain["rewards"] + start, rel=1e-9)


def test_truncation_keeps_the_potential(mini):
    plain = play(ClusterEnv(mini, reward="slowdown"), shortest, seed=3)
    env = ClusterEnv(mini, reward="slowdown-shaped", gamma=1.0)
    env.reset(seed=3)
    start = potential(env)
    shaped = play(env, shortest, seed=3)
    assert plain["truncated"] and shaped["truncated"]
    assert potential(env) > 0
    assert sum(shaped["rewards"]) == pytest.approx(sum(plain["rewards"]) + start - potential(env), rel=1e-9)


def test_rewards_are_per_expected_arrival(mini):
    """The mean reward of a step is of one size in all kinds: the work of one arrival, within what chance does."""
    means = {}
    for kind in ("routing", "repurposing", "joint"):
        env = ClusterEnv(mini, kind=kind, reward="time_in_system")
        acts = {"routing": shortest, "repurposing": lambda view: 0}
        joint = lambda view: np.array([*(shortest(view) if view.kind == 0 else (0, 0)), 0])  # noqa: E731
        means[kind] = np.mean(play(env, acts.get(kind, joint), seed=3)["rewards"])
    assert means["repurposing"] == pytest.approx(means["routing"], rel=0.35)
    assert means["joint"] == pytest.approx(means["routing"], rel=0.35)
