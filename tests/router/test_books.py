"""The router's books are the simulator's, and come out even."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym.machines import build_machines, parse_machines
from splitgym.router.books import Booking, RouterBooks
from splitgym.sim import ReferenceEngine, Scenario
from splitgym.sim import books as b
from splitgym.sim.cluster import Cluster
from splitgym.view import DOWN, READY, TICK, TOKEN, Decision
from splitgym.workload import Requests

MACHINES = build_machines(parse_machines("prompt=1:h100-80gb,token=1:h100-80gb,mixed=1:a100-80gb"), "llama2-70b", 8)
CLUSTER = Cluster(MACHINES, MACHINES[0].profile.model, MACHINES[2].profile)
SAME = [b.ROLE, b.LIFECYCLE, b.PENDING_PROMPTS, b.PENDING_TOKENS, b.PENDING_S, b.DECODES, b.COMING, b.CONTEXT]
SAME += [b.REMAINING, b.BOOKED_KV, b.COMING_CONTEXT, b.LAW]


def test_rows_are_those_of_the_simulator() -> None:
    """After the same assignments, and once a prompt phase has ended."""
    prompts, decisions = [300, 500, 200], [Decision(0, 1), Decision(2, 2), Decision(0, 2)]
    requests = Requests(
        arrival_s=np.array([0.0, 0.001, 0.002]),
        prompt_tokens=np.array(prompts),
        output_tokens=np.array([10, 20, 30]),
        predicted_output_tokens=np.array([12.0, 18.0, 33.0]),
    )
    engine = ReferenceEngine(Scenario(CLUSTER, requests, tick_s=0.06))
    books = RouterBooks(CLUSTER)
    bookings = []
    for number, decision in enumerate(decisions):
        engine.advance()
        engine.decide(decision)
        machines = decision.prompt_machine, decision.token_machine
        bookings.append(books.assign(*machines, prompts[number], float(requests.predicted_output_tokens[number])))
    np.testing.assert_array_equal(books.rows[:, SAME], engine.books.rows[:, SAME])
    engine.advance()  # to the tick: the first prompt of machine 0 (0.055 s) has ended, that of machine 2 (0.09 s) not
    books.prompt_ended(bookings[0])
    columns = [column for column in SAME if column != b.BOOKED_KV]  # there the cache has arrived already
    np.testing.assert_allclose(books.rows[:, columns], engine.books.rows[:, columns], atol=1e-12)  # sums of seconds
    books.tokens_came(bookings[0], 1)  # the first token from the token machine
    np.testing.assert_allclose(books.rows[:, SAME], engine.books.rows[:, SAME], atol=1e-12)


STEPS = st.tuples(st.sampled_from(["assign", "prompt", "tokens", "settle", "role", "down"]), st.integers(0, 9))


@given(st.lists(st.tuples(STEPS, st.integers(0, 2), st.integers(0, 2), st.integers(1, 5000)), max_size=60))
@settings(max_examples=200, deadline=None)
def test_whatever_happens_nothing_is_left_and_nothing_negative(
    steps: list[tuple[tuple[str, int], int, int, int]],
) -> None:
    books = RouterBooks(CLUSTER)
    bookings: list[Booking] = []
    for (what, which), prompt, token, tokens in steps:
        if what == "assign":
            bookings.append(books.assign(prompt, token, tokens, float(tokens)))
        elif what == "role":
            books.set_role(prompt, TOKEN, READY)
        elif what == "down":
            books.set_down(prompt, which % 2 == 0)
        elif bookings:
            booking = bookings[which % len(bookings)]
            if what == "prompt":
                books.prompt_ended(booking)
            elif what == "tokens":
                books.tokens_came(booking, which + 1)
            else:
                books.settle(booking)
        counts = books.rows[:, [b.PENDING_PROMPTS, b.PENDING_TOKENS, b.DECODES, b.COMING, b.CONTEXT]]
        assert (counts >= 0).all()
        assert (books.rows[:, b.BOOKED_KV] >= -1e-6).all()  # sums of predicted lengths, rounded
    for booking in bookings:
        books.settle(booking)
    work = [column for column in SAME if column not in (b.ROLE, b.LIFECYCLE, b.LAW)]
    np.testing.assert_allclose(books.rows[:, work], 0.0, atol=1e-6)
    assert [books.in_flight(machine) for machine in range(3)] == [0, 0, 0]


def test_down_hides_the_lifecycle_and_forgets_reports() -> None:
    books = RouterBooks(CLUSTER)
    books.report(1, 3.0, 2.0, 0.5)
    assert books.rows[1, b.KV_HELD] == 0.5 * books.capacities[1]
    assert 0 <= books.view(TICK)["report_age_s"][1] <= books.view(TICK)["report_age_s"][0]
    books.set_down(1, True)
    assert books.lifecycle_of(1) == DOWN and books.rows[1, b.RUNNING] == 0
    books.set_role(1, TOKEN, READY)
    assert books.lifecycle_of(1) == DOWN
    books.set_down(1, False)
    assert books.lifecycle_of(1) == READY
