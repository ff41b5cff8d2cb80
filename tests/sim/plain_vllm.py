"""One machine under vLLM's scheduler, token by token and block by block, to hold the engines against."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

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
    blocks: int = 0
    decodes: bool = False  # its cache lacks its last token alone, and it has not just been preempted


class PlainVllm:
    """A list of running sequences in order of admission, a queue of waiting ones, a number of free blocks."""

    def __init__(self, law: LatencyLaw, limits: VllmBatching, kv_capacity_tokens: int) -> None:
        self.law_row, self.limits = law.packed(), limits
        self.free = kv_capacity_tokens // limits.block_size
        self.kept = int(limits.watermark * self.free)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    def replay(self, requests: Requests) -> tuple[FloatArray, FloatArray]:
        """When first and last tokens came out, each (num_requests,)."""
        first_s, last_s = np.full((2, len(requests)), np.nan)
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
                    self.free += sequence.blocks
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
            if self.blocks(sequence.tokens) > self.free - (self.kept if self.running else 0):
                break
            self.running.append(self.waiting.popleft())
            chunk = min(sequence.tokens, budget)
            assert self.grow(sequence, chunk)
            batch.append((sequence, chunk))
            budget -= chunk
        return batch

    def blocks(self, tokens: int) -> int:
        """That hold ``tokens``."""
        return -(-tokens // self.limits.block_size)

    def grow(self, sequence: Sequence, chunk: int) -> bool:
        """Take the blocks for ``chunk`` more tokens, all or none."""
        more = self.blocks(sequence.computed + chunk) - sequence.blocks
        if more > self.free:
            return False
        self.free -= more
        sequence.blocks += more
        return True

    def preempt(self) -> None:
        """The last admitted goes back to the front of the queue."""
        victim = self.running.pop()
        self.free += victim.blocks
        victim.computed = victim.blocks = 0
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
