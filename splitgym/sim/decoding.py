"""The decodes of one machine: who gets a token, when each ends, and its largest gap between tokens.

An iteration that serves every decode costs only what changes: a common clock counts such iterations, ends are kept in
a heap by that clock, and gaps in a stack of decreasing maxima. An iteration that leaves some out costs their number.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush


@dataclass(slots=True)
class _Decode:
    whole_tokens: int  # prompt and output
    ends_at: int  # the common clock when its last token is due, if it is never left out
    last_token_s: float  # known where it is fresh
    tbt_max_s: float = 0.0
    since: int = 0  # gaps of later clocks count for it
    passed_over: int = 0


class Decodes:
    """Requests in their token phase on one machine, keyed by request number, which is their order of arrival."""

    def __init__(self) -> None:
        self._members: dict[int, _Decode] = {}
        self._clock = 0
        self._ends: list[tuple[int, int]] = []  # heap of (clock, request)
        self._last_s = 0.0  # when the last iteration that served everybody ended
        self._fresh: list[int] = []  # whose last token was not at _last_s
        self._gaps: list[tuple[int, float]] = []  # (clock, gap), gaps decreasing
        self._left_out = False
        self._context_tokens = 0

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[int]:
        return iter(self._members)

    def join(
        self, request: int, whole_tokens: int, remaining_tokens: int, last_token_s: float, tbt_max_s: float = 0.0
    ) -> None:
        """Take in a request that has ``remaining_tokens`` ≥ 1 of its ``whole_tokens`` (prompt, output) to come.

        Its last token was at ``last_token_s`` (NaN: it has none yet, see `begin`), its largest gap is ``tbt_max_s``.
        """
        ends_at = self._clock + remaining_tokens
        self._members[request] = _Decode(whole_tokens, ends_at, last_token_s, tbt_max_s)
        self._context_tokens += whole_tokens - remaining_tokens
        self._fresh.append(request)
        heappush(self._ends, (ends_at, request))

    def begin(self, request: int, first_token_s: float) -> None:
        """The iteration that ends at ``first_token_s`` yields the first token of a request that has none."""
        self._members[request].last_token_s = first_token_s

    def remove(self, request: int) -> tuple[int, float, float]:
        """Take it out before its end; returns its remaining tokens, last token's time and largest gap, as for `join`.

        Nobody may have been left out of the last iteration.
        """
        decode = self._members.pop(request)
        self._ends.remove((decode.ends_at, request))
        heapify(self._ends)
        remaining_tokens = decode.ends_at - self._clock
        self._context_tokens -= decode.whole_tokens - remaining_tokens
        if request in self._fresh:
            self._fresh.remove(request)
            return remaining_tokens, decode.last_token_s, decode.tbt_max_s
        return remaining_tokens, self._last_s, self._largest_gap_s(decode)

    def tokens_of(self, request: int) -> int:
        """Prompt and tokens so far."""
        decode = self._members[request]
        return decode.whole_tokens - (decode.ends_at - self._clock)

    def passed_over(self, times: int) -> list[int]:
        """Those left out at least ``times`` times since they were last served, in order of arrival."""
        if not self._left_out:
            return []
        return sorted(request for request, decode in self._members.items() if decode.passed_over >= times)

    def in_order(self) -> list[int]:
        """All, in order of arrival."""
        return sorted(self._members)

    def context_tokens(self, served: Collection[int] | None) -> int:
        """Σ prompt and tokens so far, of ``served`` or (``None``) of all."""
        if served is None:
            return self._context_tokens
        return sum(self.tokens_of(request) for request in served)

    def serve_all(self, end_s: float) -> list[tuple[int, float]]:
        """One token for everybody at ``end_s``; returns (request, tbt_max_s) of those that are done, in order."""
        self._clock += 1
        self._context_tokens += len(self._members)
        if len(self._members) > len(self._fresh):
            gap_s = end_s - self._last_s
            while self._gaps and self._gaps[-1][1] <= gap_s:
                self._gaps.pop()
            self._gaps.append((self._clock, gap_s))
        for request in self._fresh:
            decode = self._members[request]
            decode.tbt_max_s = max(decode.tbt_max_s, end_s - decode.last_token_s)
            decode.since = self._clock
        self._fresh.clear()
        self._last_s = end_s
        if self._left_out:
            for decode in self._members.values():
                decode.passed_over = 0
            self._left_out = False
        done = []
        while self._ends and self._ends[0][0] == self._clock:
            request = heappop(self._ends)[1]
            decode = self._members.pop(request)
            self._context_tokens -= decode.whole_tokens
            done.append((request, self._largest_gap_s(decode)))
        if not self._members:
            self._gaps.clear()
        return done

    def serve(self, served: Collection[int], end_s: float) -> list[tuple[int, float]]:
        """One token for ``served`` alone; the others are passed over. Returns as `serve_all` does."""
        fresh = set(self._fresh)
        done = []
        for request in self.in_order():
            decode = self._members[request]
            if request not in fresh:
                decode.tbt_max_s = self._largest_gap_s(decode)
                decode.last_token_s = self._last_s
            if request not in served:
                decode.passed_over += 1
                continue
            decode.passed_over = 0
            decode.tbt_max_s = max(decode.tbt_max_s, end_s - decode.last_token_s)
            decode.last_token_s = end_s
            decode.ends_at -= 1
            if decode.ends_at == self._clock:
                done.append((request, decode.tbt_max_s))
        self._context_tokens += len(served)
        for request, _ in done:
            self._context_tokens -= self._members.pop(request).whole_tokens
        self._ends = [(decode.ends_at, request) for request, decode in self._members.items()]
        heapify(self._ends)
        self._fresh = list(self._members)
        self._gaps.clear()
        self._left_out = True
        return done

    def _largest_gap_s(self, decode: _Decode) -> float:
        first = bisect_right(self._gaps, decode.since, key=lambda gap: gap[0])
        return max(decode.tbt_max_s, self._gaps[first][1]) if first < len(self._gaps) else decode.tbt_max_s
