"""The shortcut of `Decodes` against the same thing done decode by decode."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from splitgym.sim.decoding import Decodes


class Naive:
    """One record per decode, touched in every iteration."""

    def __init__(self) -> None:
        self.members: dict[int, dict[str, float]] = {}

    def join(self, request: int, whole: int, remaining: int, last_s: float, max_s: float = 0.0) -> None:
        self.members[request] = {"left": remaining, "whole": whole, "last": last_s, "max": max_s, "over": 0}

    def remove(self, request: int) -> tuple[float, float, float]:
        decode = self.members.pop(request)
        return decode["left"], decode["last"], decode["max"]

    def serve(self, served: set[int], end_s: float) -> list[tuple[int, float]]:
        done = []
        for request in sorted(self.members):
            decode = self.members[request]
            if request not in served:
                decode["over"] += 1
                continue
            decode["over"] = 0
            decode["max"] = max(decode["max"], end_s - decode["last"])
            decode["last"] = end_s
            decode["left"] -= 1
            if decode["left"] == 0:
                done.append((request, decode["max"]))
        for request, _ in done:
            del self.members[request]
        return done

    def context(self, served: set[int]) -> int:
        return int(sum(self.members[r]["whole"] - self.members[r]["left"] for r in served))


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 9), max_size=3),  # remaining tokens of those who join
            st.floats(0.01, 2.0),  # duration
            st.one_of(st.none(), st.integers(0, 2**16)),  # None: everybody is served; else whom, as bits
        ),
        min_size=1,
        max_size=60,
    )
)
def test_equals_naive(steps: list[tuple[list[int], float, int | None]]) -> None:
    decodes, naive = Decodes(), Naive()
    now_s, request = 0.0, 0
    for joining, duration_s, bits in steps:
        for remaining in joining:
            for keeper in (decodes, naive):
                keeper.join(request, 20 + remaining, remaining, now_s - 0.005 * request)
            request += 1
        now_s += duration_s
        everybody = set(naive.members)
        if not everybody:
            continue
        served = everybody if bits is None else {r for r in everybody if bits >> (r % 16) & 1}
        assert decodes.context_tokens(None) == naive.context(everybody)
        assert decodes.context_tokens(served) == naive.context(served)
        assert decodes.passed_over(2) == sorted(r for r, d in naive.members.items() if d["over"] >= 2)
        done = decodes.serve_all(now_s) if bits is None else decodes.serve(served, now_s)
        assert done == naive.serve(served, now_s)
        assert len(decodes) == len(naive.members)
        assert decodes.in_order() == sorted(naive.members)


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 9), max_size=3),  # remaining tokens of those who join
            st.floats(0.01, 2.0),  # duration
            st.integers(0, 5),  # who is taken out, if there are as many
            st.booleans(),  # whether somebody who was taken out comes back
        ),
        min_size=1,
        max_size=60,
    )
)
def test_some_are_taken_out_and_come_back(steps: list[tuple[list[int], float, int, bool]]) -> None:
    decodes, naive = Decodes(), Naive()
    now_s, request = 0.0, 0
    out: list[tuple[int, int, float, float]] = []
    for joining, duration_s, place, comes_back in steps:
        for remaining in joining:
            for keeper in (decodes, naive):
                keeper.join(request, 20 + remaining, remaining, now_s)
            request += 1
        if place < len(naive.members):
            taken = sorted(naive.members)[place]
            assert decodes.tokens_of(taken) == naive.context({taken})
            removed = decodes.remove(taken)
            assert removed == naive.remove(taken)
            out.append((taken, *removed))
        elif comes_back and out:
            back, remaining, last_s, max_s = out.pop(0)
            for keeper in (decodes, naive):
                keeper.join(back, 20 + remaining, remaining, last_s, max_s)
        now_s += duration_s
        everybody = set(naive.members)
        if everybody:
            assert sorted(decodes) == sorted(everybody)
            assert decodes.context_tokens(None) == naive.context(everybody)
            assert decodes.serve_all(now_s) == naive.serve(everybody, now_s)
