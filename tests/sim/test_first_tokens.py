"""First tokens that token machines make: cases computed by hand, in both engines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from splitgym.sim.cluster import Batching, Cluster, Scenario, Transfer, VllmBatching
from splitgym.sim.reference import ReferenceEngine
from splitgym.sim.run import RunResult, run
from splitgym.view import Decision
from tests.sim.build import MODEL, Fixed, cluster, requests

engines = pytest.mark.parametrize("engine", ["reference", "compiled"])


def late(tested: Cluster) -> Cluster:
    return dataclasses.replace(tested, first_token="token_machine")


def events(result: RunResult, kind: str) -> list[tuple[int, int]]:
    assert result.recorder is not None
    return [event[2:] for event in result.recorder.events if event.kind == kind]


@engines
def test_the_first_token_comes_after_the_transfer_and_an_iteration(engine: str) -> None:
    scenario = Scenario(late(cluster("pt")), requests((0.5, 100, 4)))
    result = run(scenario, Fixed([(0, 1)]), engine=engine, record=True)
    rows, kv_s = result.rows, MODEL.kv_bytes_per_token * 100 / 1e15
    assert rows.transfer_end_s[0] == pytest.approx(1.5 + kv_s, abs=1e-12)
    assert rows.first_token_s[0] == pytest.approx(1.6 + kv_s, abs=1e-9)
    assert rows.finish_s[0] == pytest.approx(1.9 + kv_s, abs=1e-9)
    assert rows.tbt_max_s[0] == pytest.approx(0.1, abs=1e-9)  # nothing of the transfer is a gap between tokens
    assert rows.tbt_mean_s[0] == pytest.approx(0.1, abs=1e-9)
    assert events(result, "first_token") == [(1, 0)]
    assert result.meters.tokens_out == 4


@engines
def test_a_single_output_token_is_made_on_the_token_machine(engine: str) -> None:
    result = run(Scenario(late(cluster("pt")), requests((0.0, 100, 1))), Fixed([(0, 1)]), engine=engine)
    rows = result.rows
    assert rows.first_token_s[0] == rows.finish_s[0] == pytest.approx(1.1)
    assert rows.transfer_end_s[0] == pytest.approx(1.0)
    assert np.isnan(rows.tbt_max_s[0])
    assert (result.meters.tokens_out, result.meters.finished) == (1, 1)


@engines
def test_on_one_machine_nothing_changes(engine: str) -> None:
    arrivals = requests((0.0, 10, 11), (0.0, 10, 1), (0.25, 10, 2))
    results = [
        run(Scenario(tested, arrivals), Fixed([(0, 0)]), engine=engine, record=True)
        for tested in (cluster("m"), late(cluster("m")))
    ]
    logs = [result.recorder.digest() for result in results if result.recorder is not None]
    assert logs[0] == logs[1]
    assert results[1].rows.first_token_s.tolist() == [1.0, 1.0, 2.0]


@engines
def test_one_that_is_left_out_waits_for_its_first_token(engine: str) -> None:
    """One place in a batch: the second's first iteration comes when the first, older one is done at 1.3 s."""
    tested = late(cluster("pt", batching=Batching(max_batch_size=1)))
    arrivals = requests((0.0, 10, 12), (0.0, 10, 2))
    rows = run(Scenario(tested, arrivals, tick_s=None), Fixed([(0, 1)]), engine=engine).rows
    # the first's cache is there at 1.0, the second's at 2.0; the first is done at 2.2
    assert rows.first_token_s.tolist() == pytest.approx([1.1, 2.3])
    assert rows.finish_s.tolist() == pytest.approx([2.2, 2.4])
    assert rows.tbt_max_s.tolist() == pytest.approx([0.1, 0.1])


@engines
def test_waiting_for_the_first_token_is_charged_until_it_is_there(engine: str) -> None:
    """Alone 1 s to the first token and 1 s for the others, so that each second costs ½ in either phase."""
    tested = late(cluster("pt", transfer=Transfer(overhead_s=2.5)))
    result = run(Scenario(tested, requests((0.0, 10, 11))), Fixed([(0, 1)]), engine=engine)
    assert result.rows.ttft_s[0] == pytest.approx(3.6)
    assert result.meters.slowdown == pytest.approx(0.5 * 3.6 + 0.5 * 1.0)
    assert (result.meters.ttft_missed, result.meters.tbt_missed) == (1, 0)  # allowed: 3 s and 1.5 s


def test_the_potential_has_the_iteration_of_the_first_token() -> None:
    engine = ReferenceEngine(Scenario(late(cluster("pt")), requests((0.0, 10, 11)), tick_s=None))
    engine.advance()
    engine.decide(Decision(0, 1))
    assert engine.books.potential(0.0) == pytest.approx(0.5 + 0.5 * 0.1 + 0.5)


@engines
def test_blocks_of_a_cache_without_a_token(engine: str) -> None:
    """Two prompts of 8 tokens fill four blocks of 4, and their only tokens are in no cache: both come at once."""
    tested = late(cluster("pt", batching=VllmBatching(4, 16, 4), kv_capacity_tokens=16))
    rows = run(Scenario(tested, requests((0.0, 8, 1), (0.0, 8, 1))), Fixed([(0, 1)]), engine=engine).rows
    assert rows.finish_s.tolist() == pytest.approx([1.1, 1.1])


@engines
def test_one_preempted_before_its_first_token_computes_its_prompt_there(engine: str) -> None:
    """Four blocks of 4. The first decodes on machine 1 from 1 s on and needs its fourth block at 1.4 s.

    The second's cache arrives there at 1.35 s and takes that block; it loses it at 1.4 s and computes its prompt from
    1.5 s on, when the first is done.
    """
    tested = late(cluster("pm", batching=VllmBatching(4, 16, 4), kv_capacity_tokens=16))
    arrivals = requests((0.0, 8, 6), (0.35, 4, 2))
    result = run(Scenario(tested, arrivals), Fixed([(1, 1), (0, 1)]), engine=engine, record=True)
    assert result.preemptions == 1
    assert result.rows.finish_s.tolist() == pytest.approx([1.5, 2.6])
    assert result.rows.first_token_s.tolist() == pytest.approx([1.0, 2.5])
    assert result.rows.tbt_max_s.tolist() == pytest.approx([0.1, 0.1])
    assert events(result, "first_token") == [(1, 0), (1, 1)]
    assert result.meters.tokens_out == 8
