"""Notes of what has changed: each reader is told of everything that changed since it last looked."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym.jit import njit
from splitgym.sim.books import Books
from splitgym.sim.cluster import Scenario
from splitgym.sim.compiled.notes import changed_since, note_change
from splitgym.sim.compiled.state import NOTES, State, new_state
from tests.sim.build import cluster, requests


@njit
def note(s: State, m: int) -> None:
    note_change(s, m)


@njit
def look(s: State, noted: int) -> tuple[int, int]:
    return changed_since(s, noted)


def state_of(roles: str) -> State:
    scenario = Scenario(cluster(roles), requests((0.0, 10, 2)))
    return new_state(scenario, Books(scenario.cluster), record=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from("ABC"), st.integers(0, 3)), max_size=120))
def test_each_reader_is_told_of_all_that_changed(sequence: list[str | int]) -> None:
    s = state_of("pptt")
    changed = {reader: {0, 1, 2, 3} for reader in "ABC"}  # who never looked is told of all
    seen = dict.fromkeys("ABC", 0)
    for what in sequence:
        if isinstance(what, int):
            note(s, what)
            for machines in changed.values():
                machines.add(what)
        else:
            first, end = look(s, seen[what])
            told = s.notes[first:end].tolist()
            assert changed[what] <= set(told) <= {0, 1, 2, 3}
            seen[what], changed[what] = int(s.run[0]["noted"]), set()


def test_a_reader_that_looks_every_time_is_seldom_told_of_more() -> None:
    s = state_of("pptt")
    told, seen = [], 0
    for _ in range(100):
        note(s, 2)
        note(s, 2)
        first, end = look(s, seen)
        told.append(s.notes[first:end].tolist())
        seen = int(s.run[0]["noted"])
    assert told[0] == [0, 1, 2, 3]
    assert all(machines in ([2], [0, 1, 2, 3]) for machines in told)
    assert sum(machines != [2] for machines in told) <= 1 + 100 / (NOTES - 1)
