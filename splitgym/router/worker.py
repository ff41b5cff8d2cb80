"""A thread for code that may hang: it is asked, waited for so long, and left alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_Call = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class Busy(Exception):  # noqa: N818
    """The worker has not come back from an earlier call."""


class Worker:
    """One daemon thread, which does one thing at a time. A hung one does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._is_working = threading.Event()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def start(self, function: Callable[[], _Result]) -> asyncio.Future[_Result]:
        """Have ``function`` called; the result is the future's.

        Raises:
            Busy: if the last call has not ended.
        """
        if self._is_working.is_set():
            raise Busy
        self._is_working.set()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()
        self._calls.put((function, future, loop))
        return future

    def close(self) -> None:
        """End the thread once its call has ended."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future, loop = call
            result, error = None, None
            try:
                result = function()
            except Exception as raised:
                error = raised
            self._is_working.clear()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_tell, future, result, error)


def _tell(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():  # nobody waits any more
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
