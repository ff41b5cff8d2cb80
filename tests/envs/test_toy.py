"""The best policy of `Toy`, worked out by hand, and checked against all others.

Every 0.8 s a prompt of 4,096 tokens arrives and, 0.1 s apart, seven of 512; each wants one token, and a machine does
one thing at a time. The latency law says, in milliseconds:

             512 tokens   4096 tokens
    H100          54.84        379.32
    A100          93.02        661.22   (the baseline)

The long prompt on the A100 takes 661.22 ms there: slowdown 1, done before the next long prompt at 800 ms. The short
ones on the H100 take 54.84 ms each and arrive 100 ms apart, so none waits: slowdown 54.84/93.02 = 0.5896. The mean
is (1 + 7 · 0.5896)/8 = 0.6409. Both machines are idle before the period is over, so periods do not touch; and since
waiting work only makes a period worse, a policy that is best in one period from idle machines is best for all.
"""

import itertools

import numpy as np
import pytest

from splitgym.envs import ClusterEnv
from tests.envs.play import play, sampler

H100, A100 = 0, 1
OPTIMUM = (1 + 7 * 54.843151 / 93.01648) / 8


@pytest.fixture
def toy():
    return ClusterEnv("Toy", kind="routing", reward="slowdown", split="test")


def best(view):
    machine = A100 if view.of_request("prompt_tokens") > 1000 else H100
    return np.array([machine, machine])


def test_the_figures_above(toy):
    seconds = [
        [machine.profile.law.uncontended_s(np.array([n]), np.array([1]))[0][0] for n in (512, 4096)]
        for machine in toy.cluster.machines
    ]
    assert np.array(seconds) == pytest.approx(np.array([[0.05484, 0.37932], [0.09302, 0.66122]]), abs=5e-6)
    toy.reset(seed=0)
    requests = toy.scenario.requests
    assert requests.arrival_s[:9] == pytest.approx(np.arange(9) / 10)
    assert requests.prompt_tokens[:9].tolist() == [4096] + 7 * [512] + [4096]
    assert (requests.output_tokens == 1).all()


def test_the_optimum_is_reached(toy):
    played = play(toy, best, seed=0)
    assert played["scorecard"]["slowdown"] == pytest.approx(OPTIMUM, rel=1e-6)  # the figures' digits
    # the last request of 200 arrives at the horizon: the return lacks it
    assert -sum(played["rewards"]) == pytest.approx(200 * OPTIMUM - 54.843151 / 93.01648, rel=1e-6)


def test_no_assignment_of_a_period_is_better(toy):
    """All 256, by first come first served queues."""
    toy.reset(seed=0)
    requests = toy.scenario.requests
    prompts = requests.prompt_tokens[:8]
    service_s = [
        [machine.profile.law.uncontended_s(np.array([n]), np.array([1]))[0][0] for n in prompts]
        for machine in toy.cluster.machines
    ]
    means = {}
    for machines in itertools.product((H100, A100), repeat=8):
        free_s = [0.0, 0.0]
        total = 0.0
        for request, machine in enumerate(machines):
            start_s = max(requests.arrival_s[request], free_s[machine])
            free_s[machine] = start_s + service_s[machine][request]
            total += (free_s[machine] - requests.arrival_s[request]) / service_s[A100][request]
        means[machines] = total / 8
    ranked = sorted(means, key=means.__getitem__)
    assert ranked[0] == (A100,) + 7 * (H100,)
    assert means[ranked[0]] == pytest.approx(OPTIMUM, rel=1e-6)
    assert means[ranked[1]] > 1.05 * OPTIMUM


def test_chance_is_far_from_it(toy):
    assert play(toy, sampler(0, toy), seed=0)["scorecard"]["slowdown"] > 2 * OPTIMUM
