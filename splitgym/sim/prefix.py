"""Prefix caching under discipline `vllm`: which caches a machine can use again, and who shares what is in use.

A prompt's first blocks have names (`splitgym.workload.Prefixes`), the same for all prompts that begin alike. What a
request has beside them on a machine, the rest of its prompt and its output, or all of a cache that was sent there, is
its own; it can be used again only by itself, after a preemption or where it begins again. Memory that nobody uses is
*kept* for that, and given up as others need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


def own_name(request: int) -> int:
    """Of what is only this request's."""
    return -1 - request


@dataclass(slots=True)
class _Used:
    users: int
    tokens: int  # of it that are there, in whole blocks


@dataclass(slots=True)
class PrefixCache:
    """What one machine has in its memory, by name; a request's own by `own_name`.

    All amounts are tokens in whole blocks. Names are given in the order of the prompt.
    """

    block_size: int
    prefix_tokens: int  # of each named block
    used: dict[int, _Used] = field(default_factory=dict)  # named blocks of running requests
    kept: dict[int, int] = field(default_factory=dict)  # what nobody uses: tokens; first what is given up first
    kept_tokens: int = 0  # their sum
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)  # the own: where it begins and is full to

    def hit_tokens(self, names: Sequence[int], own: int, tokens: int) -> int:
        """How many of a prompt's ``tokens`` are there from its beginning on; the last one is always computed."""
        hit = 0
        for name in names:
            held = self.used[name].tokens if name in self.used else self.kept.get(name, 0)
            hit += held
            if held < self.prefix_tokens:
                break
        if own in self.kept:
            first, end = self.spans[own]
            if first <= hit:
                hit = max(hit, min(first + self.kept[own], end))
        return min(hit, (tokens - 1) // self.block_size * self.block_size)

    def shared_tokens(self, names: Sequence[int]) -> int:
        """How many of them others use already, so that they take no more memory."""
        return sum(self.used[name].tokens for name in names if name in self.used)

    def use(self, names: Sequence[int], own: int) -> None:
        """A request is admitted."""
        self._take(own)
        for name in names:
            if name in self.used:
                self.used[name].users += 1
            else:
                self.used[name] = _Used(1, self._take(name))

    def publish(self, names: Sequence[int], tokens: int) -> None:
        """So many tokens of its prompt are there, or will be after this iteration: others may use its full blocks."""
        full = tokens - tokens % self.block_size
        for place, name in enumerate(names):
            here = min(full - place * self.prefix_tokens, self.prefix_tokens)
            self.used[name].tokens = max(self.used[name].tokens, here)

    def release(self, names: Sequence[int], own: int, tokens: int, there: int) -> int:
        """A request of that many tokens gives them back, the last first; returns how many others still use.

        In its blocks are so many tokens as are ``there``.
        """
        first = len(names) * self.prefix_tokens
        self._keep(own, tokens - first)
        self.spans[own] = first, there - there % self.block_size
        shared = 0
        for name in reversed(names):
            used = self.used[name]
            used.users -= 1
            if used.users:
                shared += used.tokens
            else:
                del self.used[name]
                self._keep(name, used.tokens)
        return shared

    def give_up(self, free_tokens: int) -> None:
        """Keep no more than is free: least recently released first."""
        while self.kept_tokens > free_tokens:
            name, tokens = next(iter(self.kept.items()))
            surplus = min(tokens, self.kept_tokens - free_tokens)
            self.kept[name] -= surplus  # its place stays the same
            self.kept_tokens -= surplus
            if surplus == tokens:
                del self.kept[name]

    def _keep(self, name: int, tokens: int) -> None:
        self._take(name)  # a request's own, where it was here before
        if tokens > 0:
            self.kept[name] = tokens
            self.kept_tokens += tokens

    def _take(self, name: int) -> int:
        tokens = self.kept.pop(name, 0)
        self.kept_tokens -= tokens
        return tokens
