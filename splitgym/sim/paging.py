"""What discipline `vllm` adds to a machine of the reference engine: the prompt in work, and who came in when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from splitgym.sim.cluster import VllmBatching
from splitgym.sim.prefix import PrefixCache


class Preempted(NamedTuple):
    """A decode whose cache was dropped, until it is recomputed."""

    remaining_tokens: int
    last_token_s: float  # NaN where it has none yet
    tbt_max_s: float


@dataclass(slots=True)
class Paging:
    """A machine's blocks are counted in tokens, always whole blocks (`SimMachine.kv_used_tokens`)."""

    limits: VllmBatching
    watermark_tokens: int
    unfinished: int = -1  # the prompt of which chunks are still to come
    computed: dict[int, int] = field(default_factory=dict)  # tokens in the cache, of prompts in work
    chunks: dict[int, int] = field(default_factory=dict)  # tokens of them in this iteration
    admitted: dict[int, int] = field(default_factory=dict)  # when each that runs was admitted
    admissions: int = 0
    cache: PrefixCache | None = None  # with prefix caching

    def in_blocks(self, tokens: int) -> int:
        """The blocks of ``tokens`` tokens, in tokens."""
        size = self.limits.block_size
        return -(-tokens // size) * size

    def in_full_blocks(self, tokens: int) -> int:
        """The full blocks among ``tokens`` tokens, in tokens."""
        return tokens - tokens % self.limits.block_size

    def admit(self, request: int) -> None:
        """The last so far."""
        self.admitted[request] = self.admissions
        self.admissions += 1
