"""What happens between two rollouts: evaluations, checkpoints, the progress bar, the charts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter
from torch.utils.tensorboard import SummaryWriter

from splitgym.learn.evaluation import Scorecard
from splitgym.learn.learned import DECISION_MODES
from splitgym.learn.references import SHOWN

_HIDDEN = ("time/",)  # the wall clock has no place in a chart over decisions


class BoardWriter(KVWriter):
    """Hands the algorithm's own figures to TensorBoard."""

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write the numbers among ``key_values``."""
        for key, value in key_values.items():
            if isinstance(value, int | float | np.number) and not key.startswith(_HIDDEN):
                self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class BetweenRollouts(BaseCallback):
    """Calls ``act(decisions taken)`` before the first rollout that starts at or after each multiple of ``every``.

    Its ``due`` is all it remembers. ``every`` 0 means never.
    """

    def __init__(self, every: int, act: Callable[[int], None]) -> None:
        super().__init__()
        self._every = every
        self._act = act
        self.due = 0

    def _on_rollout_start(self) -> None:
        if self._every and self.num_timesteps >= self.due:
            self.due = (self.num_timesteps // self._every + 1) * self._every
            self._act(self.num_timesteps)

    def _on_step(self) -> bool:
        return True


class Evaluations:
    """Evaluates the network as it learns, both ways to decide.

    Args:
        play: the mean scorecard of the present network, deciding by ``argmax`` or ``sample``.
        writer: of TensorBoard.
    """

    def __init__(self, play: Callable[[str], Scorecard], writer: SummaryWriter) -> None:
        self._play = play
        self._writer = writer
        self.last: dict[str, float] = {}  # mean slowdown by way to decide

    def __call__(self, step: int) -> None:
        """Evaluate and draw; the lines without a name of a way are the better way's."""
        cards: dict[str, Scorecard] = {mode: self._play(mode) for mode in DECISION_MODES}
        self.last = {mode: card["slowdown"] for mode, card in cards.items()}
        better = cards[min(self.last, key=lambda mode: self.last[mode])]
        points = {f"eval/{figure}": better[figure] for figure in SHOWN}
        points |= {f"eval_{mode}/{figure}": cards[mode][figure] for mode in cards for figure in SHOWN[:1]}
        for tag, value in points.items():
            self._writer.add_scalar(tag, value, step)


class Bar(BaseCallback):
    """The progress bar: decisions, return and slowdown of the last episodes, slowdown at the last evaluation, ETA.

    It also draws the mean slowdown of the training episodes, ``rollout/slowdown``.
    """

    def __init__(self, total: int, label: str, evaluations: Evaluations | None, *, shown: bool) -> None:
        super().__init__()
        self._total = total
        self._label = label
        self._evaluations = evaluations
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,}/{task.total:,} decisions"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not shown)
        self._task: TaskID | None = None
        self._slowdowns: deque[float] = deque(maxlen=16)
        self._returns: deque[float] = deque(maxlen=16)

    def _on_training_start(self) -> None:
        self._task = self._progress.add_task(self._label, total=self._total, figures="")
        self._progress.start()
        self._show()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self._returns.append(info["episode"]["r"] / info["episode"]["l"])
            if "scorecard" in info:
                self._slowdowns.append(info["scorecard"]["slowdown"])
        return True

    def _on_rollout_end(self) -> None:
        if self._slowdowns:
            self.logger.record("rollout/slowdown", float(np.mean(self._slowdowns)))
        if self._returns:
            self.logger.record("rollout/reward", float(np.mean(self._returns)))
        self._show()

    def _show(self) -> None:
        figures = []
        if self._returns:
            figures.append(f"reward {np.mean(self._returns):.3f}")
        if self._slowdowns:
            figures.append(f"slowdown {np.mean(self._slowdowns):.3f}")
        if self._evaluations is not None and self._evaluations.last:
            figures.append(f"evaluated {min(self._evaluations.last.values()):.3f}")
        assert self._task is not None
        self._progress.update(self._task, completed=self.num_timesteps, figures=", ".join(figures))

    def stop(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()
