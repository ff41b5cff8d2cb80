"""A machine of the published Splitwise simulator: its queue, its batches, its blocks of iterations."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

from splitgym.hardware.published_tables import PublishedLatency
from splitgym.sim.published_parts import Clock, Event, Request, Task

MAX_BATCH_SIZE = 512
MAX_BATCH_TOKENS = 2048
MAX_PASS_OVERS = 4


def _queue_key(task: Task) -> tuple[int, float]:
    return task.pass_overs, task.request.arrival_s


def _arrival_key(request: Request) -> float:
    return request.arrival_s


class Machine:
    """One machine.

    Args:
        number: its place in the cluster.
        latency: of its hardware.
        capacity_tokens: KV tokens it holds.
        clock: the simulation's.
        on_task_end: told of each task that completes.
        on_empty: told when an iteration has ended and nothing at all is left here.
    """

    def __init__(
        self,
        number: int,
        latency: PublishedLatency,
        capacity_tokens: float,
        clock: Clock,
        on_task_end: Callable[[Task], None],
        on_empty: Callable[[Machine], None],
    ) -> None:
        self.number = number
        self.pending_tokens = 0  # assigned prompt tokens, and 1 per decode, until the phase's end
        self.reserved_tokens = 0  # memory assigned, in use yet or not; knows true output lengths
        self.used_tokens = 0  # memory in use
        self.queue: list[Task] = []  # by (pass-overs, arrival) as they stood at insertion: never sorted again
        self._latency = latency
        self._capacity_tokens = capacity_tokens
        self._clock = clock
        self._on_task_end = on_task_end
        self._on_empty = on_empty
        self._prompts: list[Task] = []  # those of the queue, first in first out
        self._preempted: list[Task] = []  # decodes of the queue that ran before, in order of preemption
        self._requests: list[Request] = []  # all that are here, by arrival
        self._batch: list[Task] = []
        self._batch_tokens = 0
        self._batch_has_prompt = False
        # A batch of decodes runs as one block of iterations.
        self._iteration_s = 0.0
        self._iterations = 0
        self._block_end = Event(0.0, self._end_block)
        self._block_is_cut = False

    def fits(self, tokens: int) -> bool:
        """Whether so many more KV tokens fit now."""
        return self.used_tokens + tokens <= self._capacity_tokens

    def is_booked_out(self, tokens: int) -> bool:
        """Whether reserving so many more KV tokens reaches the capacity."""
        return self.reserved_tokens + tokens >= self._capacity_tokens

    def release(self, tokens: int) -> None:
        """Give memory back: reservations last until here, too."""
        self.used_tokens -= tokens
        self.reserved_tokens -= tokens

    def accept(self, task: Task) -> None:
        """A task arrives."""
        if task is task.request.current:  # a decode may be queued behind its own prompt
            insort(self._requests, task.request, key=_arrival_key)
        insort(self.queue, task, key=_queue_key)
        if task.is_prompt:
            self._prompts.append(task)
        if not self._batch:
            if self.fits(task.memory_tokens):
                self._start_block()
        elif self._takes_more() and self._batch_tokens + task.batch_tokens <= MAX_BATCH_TOKENS:
            self._cut_block()
        elif task.is_prompt and task.batch_tokens <= MAX_BATCH_TOKENS:
            # Decodes make room for a prompt however full the batch; a longer one waits for the block's end.
            self._cut_block()

    def transfer_left(self) -> None:
        """A KV-cache has left this machine: what waits may go on."""
        if not self.queue:
            return
        if not self._batch:
            if self.fits(self.queue[0].memory_tokens):
                self._start_block()
        elif self._takes_more() and self._batch_tokens < MAX_BATCH_TOKENS:
            self._cut_block()

    def _takes_more(self) -> bool:
        return len(self._batch) < MAX_BATCH_SIZE

    def _start_block(self) -> None:
        """Form a batch and run it until one of its tasks is through."""
        num_kept, joining = self._select()
        for task in self._batch[num_kept:]:
            self._preempt(task)
        for task in joining:
            self._leave_queue(task)
        self._batch = self._batch[:num_kept] + joining
        for task in self.queue:  # waiting prompts are counted too, once a block instead of once an iteration
            if task is task.request.current:
                task.pass_overs += 1
        if not self._batch:
            if not self._requests:
                self._on_empty(self)
            return
        num_prompts = sum([task.is_prompt for task in joining])
        self._batch_has_prompt = num_prompts > 0
        num_decodes = len(self._batch) - num_prompts
        self._iteration_s = self._latency.iteration_s(num_prompts, num_decodes, self._batch_tokens)
        self._iterations = min([task.iterations_left for task in self._batch])
        now_s = self._clock.now_s
        for task in joining:
            if task.is_prompt:
                task.request.prompt_start_s = now_s
            else:
                task.tbt_max_s = max(task.tbt_max_s, now_s + self._iteration_s - task.last_token_s)
        self._block_end = self._clock.at(now_s + self._iteration_s * self._iterations, self._end_block)

    def _cut_block(self) -> None:
        """Let the block end with the iteration that runs; a batch with a prompt has no more than that."""
        if self._block_is_cut or self._batch_has_prompt:
            return
        self._block_is_cut = True
        now_s = self._clock.now_s
        elapsed_s = now_s - (float(self._block_end) - self._iteration_s * self._iterations)
        # The bound matters at the instant of the block's end alone, where the published simulator runs on.
        self._iterations = min(int(elapsed_s // self._iteration_s) + 1, self._iterations)
        remaining_s = self._iteration_s * self._iterations - elapsed_s
        self._block_end.cancelled = True
        if remaining_s == 0:
            self._end_block()  # what has no delay runs at once
        else:
            self._block_end = self._clock.at(now_s + remaining_s, self._end_block)

    def _end_block(self, _: object = None) -> None:
        ended = []
        for task in self._batch:
            task.iterations_left -= self._iterations
            if task.tbt_max_s < self._iteration_s:
                task.tbt_max_s = self._iteration_s
            if task.iterations_left == 0:
                task.in_batch = False
                ended.append(task)
        if ended:
            self._batch = [task for task in self._batch if task.in_batch]
        for task in ended:
            if not (task.is_prompt and task.request.decodes_where_prompted):
                self._requests.remove(task.request)
            self._on_task_end(task)
        self._block_is_cut = False
        self._start_block()

    def _preempt(self, task: Task) -> None:
        task.in_batch = False
        task.last_token_s = self._clock.now_s
        insort(self.queue, task, key=_queue_key)
        self._preempted.append(task)

    def _leave_queue(self, task: Task) -> None:
        self.queue.remove(task)
        if task.is_prompt:
            self._prompts.remove(task)
        elif task in self._preempted:
            self._preempted.remove(task)

    def _select(self) -> tuple[int, list[Task]]:
        """Form the next batch.

        Returns:
            How many of the running decodes stay, the first ones, and the tasks that join them, in order.
        """
        if not self.queue:
            self._batch_tokens = len(self._batch)
            return len(self._batch), []
        draft = _Draft(self)
        for task in self.queue:
            if task.pass_overs < MAX_PASS_OVERS or not draft.has_room(task):
                break  # the first task below the limit ends the pass: those behind it may be above
            draft.admit(task)
        for task in self._prompts:
            if not draft.has_room(task) or not (task.in_batch or draft.admit(task)):
                break
        for task in self._preempted:
            if not draft.has_room(task):
                break
            if not task.in_batch:
                draft.admit(task)
        num_kept = draft.keep(len(self._batch))
        if num_kept == len(self._batch):
            for request in self._requests:
                task = request.current
                if not task.in_batch and not (draft.has_room(task) and draft.admit(task)):
                    break
        self._batch_tokens = draft.tokens
        return num_kept, draft.joining


class _Draft:
    """A batch in the making."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.joining: list[Task] = []
        self.size = 0
        self.tokens = 0

    def has_room(self, task: Task) -> bool:
        """Whether the limits allow one more; the first task ignores that of tokens."""
        if self.size == 0:
            return True
        return self.size < MAX_BATCH_SIZE and self.tokens + task.batch_tokens <= MAX_BATCH_TOKENS

    def admit(self, task: Task) -> bool:
        """Take a task in, unless its memory does not fit."""
        if not task.memory_claimed:
            if not self.machine.fits(task.memory_tokens):
                return False
            self.machine.used_tokens += task.memory_tokens
            task.memory_claimed = True
        task.in_batch = True
        self.joining.append(task)
        self.size += 1
        self.tokens += task.batch_tokens
        return True

    def keep(self, num_running: int) -> int:
        """Take in as many of the running decodes as there is room for."""
        num_kept = max(0, min(num_running, MAX_BATCH_SIZE - self.size, MAX_BATCH_TOKENS - self.tokens))
        self.size += num_kept
        self.tokens += num_kept
        return num_kept
