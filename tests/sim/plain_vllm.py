"""One machine under vLLM's scheduler, token by token and block by block, to hold the engines against."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from splitgym.hardware import LatencyLaw, iteration_s
from splitgym.sim.cluster import VllmBatching
from splitgym.workload import Requests

FloatArray = npt.NDArray[np.float64]


@dataclass
class Sequence:
    """A request in the engine."""

    number: int
    tokens: int  # prompt and generated so far
    left: int  # to generate
    computed: int = 0
    keys: list[tuple[int, int]] = field(default_factory=list)  # of its blocks; the same key is the same block
    decodes: bool = False  # its cache lacks its last token alone, and it has not just been preempted


class PlainVllm:
    """A list of running sequences in order of admission, a queue of waiting ones, and the blocks.

    With prefix caching blocks that nobody uses are kept, the one to be given up first at the left; without it none is.
    """

    def __init__(self, law: LatencyLaw, limits: VllmBatching, kv_capacity_tokens: int) -> None:
        self.law_row, self.limits = law.packed(), limits
        self.num_blocks = kv_capacity_tokens // limits.block_size
        self.users: Counter[tuple[int, int]] = Counter()  # of blocks that are in use
        self.kept: deque[tuple[int, int]] = deque()
        self.watermark = int(limits.watermark * self.num_blocks)
        self.hit_tokens = 0
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    def replay(self, requests: Requests) -> tuple[FloatArray, FloatArray]:
        """When first and last tokens came out, each (num_requests,)."""
        first_s, last_s = np.full((2, len(requests)), np.nan)
        self.prefixes = requests.prefixes
        arrivals = deque(range(len(requests)))
        now_s = 0.0
        while np.isnan(last_s).any():
            while arrivals and requests.arrival_s[arrivals[0]] <= now_s:
                n = arrivals.popleft()
                lengths = int(requests.prompt_tokens[n]), int(requests.output_tokens[n])
                self.waiting.append(Sequence(n, *lengths))
            batch = self.schedule()
            if not batch and not self.waiting:
                now_s = float(requests.arrival_s[arrivals[0]])
            if not batch:
                continue
            now_s += self.duration_s(batch)
            for sequence, chunk in batch:
                sequence.computed += chunk
                if sequence.computed < sequence.tokens:
                    continue
                if np.isnan(first_s[sequence.number]):
                    first_s[sequence.number] = now_s
                sequence.tokens += 1
                sequence.left -= 1
                sequence.decodes = True
                if sequence.left == 0:
                    last_s[sequence.number] = now_s
                    self.running.remove(sequence)
                    self.give_back(sequence, len(sequence.keys))
        return first_s, last_s

    def schedule(self) -> list[tuple[Sequence, int]]:
        """Sequences and how many tokens of each are computed."""
        batch: list[tuple[Sequence, int]] = []
        budget, place, preempted = self.limits.max_num_batched_tokens, 0, False
        while place < len(self.running):
            sequence = self.running[place]
            chunk = min(sequence.tokens - sequence.computed, budget)
            if not self.grow(sequence, chunk):
                self.preempt()
                preempted = True
                continue
            batch.append((sequence, chunk))
            budget -= chunk
            place += 1
        while self.waiting and budget > 0 and not preempted and len(self.running) < self.limits.max_num_seqs:
            sequence = self.waiting[0]
            keys = self.keys(sequence, self.blocks(sequence.tokens))
            needed = sum(key not in self.users for key in keys)
            if needed > self.free - (self.watermark if self.running else 0):
                break
            self.running.append(self.waiting.popleft())
            self.find(sequence, keys)
            chunk = min(sequence.tokens - sequence.computed, budget)
            assert self.grow(sequence, chunk)
            batch.append((sequence, chunk))
            budget -= chunk
        return batch

    def blocks(self, tokens: int) -> int:
        """That hold ``tokens``."""
        return -(-tokens // self.limits.block_size)

    @property
    def free(self) -> int:
        """Blocks that nobody uses, kept or not."""
        return self.num_blocks - len(self.users)

    def keys(self, sequence: Sequence, count: int) -> list[tuple[int, int]]:
        """Of its first blocks: (name, place in the named block) or, where they are its own, (-1 - number, place)."""
        keys = [(-1 - sequence.number, place) for place in range(count)]
        if self.prefixes is not None and self.limits.prefix_caching:
            ratio = self.prefixes.block_tokens // self.limits.block_size
            first, end = self.prefixes.first[sequence.number :][:2]
            named = [(int(name), place) for name in self.prefixes.blocks[first:end] for place in range(ratio)]
            keys[: len(named)] = named[:count]
        return keys

    def find(self, sequence: Sequence, keys: list[tuple[int, int]]) -> None:
        """Use what is there of its blocks, from the first on; its last token is computed in any case."""
        for key in keys:
            if key not in self.users and key not in self.kept:
                break
            self.take(sequence, key)
        hit = min(len(sequence.keys), (sequence.tokens - 1) // self.limits.block_size)
        sequence.computed = hit * self.limits.block_size
        self.hit_tokens += sequence.computed

    def take(self, sequence: Sequence, key: tuple[int, int]) -> None:
        """Use a block; where it is new, others are given up for it."""
        if key in self.kept:
            self.kept.remove(key)
        self.users[key] += 1
        sequence.keys.append(key)
        while len(self.kept) > self.free:
            self.kept.popleft()

    def grow(self, sequence: Sequence, chunk: int) -> bool:
        """Take the blocks for ``chunk`` more tokens, all or none."""
        more = self.keys(sequence, self.blocks(sequence.computed + chunk))[len(sequence.keys) :]
        if len(more) > self.free:
            return False
        for key in more:
            self.take(sequence, key)
        return True

    def give_back(self, sequence: Sequence, keep: int) -> None:
        """It uses its blocks no more; of the first ``keep`` those that nobody else uses are kept."""
        for place, key in reversed(list(enumerate(sequence.keys))):
            self.users[key] -= 1
            if self.users[key] == 0:
                del self.users[key]
                if place < keep and self.limits.prefix_caching:
                    self.kept.append(key)
        sequence.keys.clear()

    def preempt(self) -> None:
        """The last admitted goes back to the front of the queue."""
        victim = self.running.pop()
        self.give_back(victim, len(victim.keys) if victim.decodes else victim.computed // self.limits.block_size)
        victim.computed = 0
        victim.decodes = False
        self.waiting.appendleft(victim)
        self.preemptions += 1

    def duration_s(self, batch: list[tuple[Sequence, int]]) -> float:
        """Of the iteration, by the law."""
        contexts = [sequence.tokens for sequence, _ in batch if sequence.decodes]
        chunks = [(chunk, sequence.computed) for sequence, chunk in batch if not sequence.decodes]
        attention = sum(chunk * (2 * context + chunk) for chunk, context in chunks)
        prompt_tokens, prefill_context = (sum(column) for column in zip(*chunks, strict=True)) if chunks else (0, 0)
        features = prompt_tokens, len(chunks), attention, prefill_context, len(contexts), sum(contexts)
        return float(iteration_s(self.law_row, *features))
