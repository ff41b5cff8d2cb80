"""The router as a process: as many connections as the system permits, and a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
from collections.abc import Generator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from splitgym.errors import SplitgymError
from splitgym.router.app import create_app
from splitgym.router.router import Router

_BACKLOG = 4096
_MOST_HEAD_BYTES = 262_144  # a read of the event loop

_log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Stops at SIGTERM and SIGINT when what runs is done, and lets the process end with code 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn's, without raising the signals again afterwards."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


class _BoundedHead(HttpToolsProtocol):
    """Breaks a connection whose request line and headers do not end: they would be kept in memory meanwhile."""

    _in_head = False
    _head_bytes = 0

    def on_message_begin(self) -> None:
        """A request line begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """It is bounded; `Limits` says what is too long."""
        super().on_headers_complete()
        self._in_head = False

    def data_received(self, data: bytes) -> None:
        """Count what has come of an unfinished head."""
        super().data_received(data)
        self._head_bytes += len(data)
        if self._in_head and self._head_bytes > _MOST_HEAD_BYTES:
            self.transport.abort()


def serve(router: Router) -> None:
    """Serve until SIGTERM or SIGINT; then take no new requests, and end when those that run have ended.

    Raises:
        SplitgymError: if the port is taken.
    """
    _allow_connections()
    config = router.config
    listener = bind(config.host, config.port)
    host, port = listener.getsockname()[:2]
    settings = uvicorn.Config(
        create_app(router),
        http=_BoundedHead,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=max(round(config.safety.drain_timeout_s), 1),
    )
    _log.warning("serving %s on http://%s:%d with %s", config.name, host, port, router.decider.policy_name)
    server = _Server(settings)
    gc.collect()
    gc.freeze()  # what is loaded stays: a full collection that walks through it would hold up every stream
    with asyncio.Runner(loop_factory=settings.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=[listener]))


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        SplitgymError: if it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, proto=socket.IPPROTO_TCP)  # named, or asyncio leaves Nagle's algorithm on
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)  # from here on a client may come
    except OSError as error:
        listener.close()
        raise SplitgymError(f"{host}:{port}: cannot listen there ({error.strerror}); choose another port") from None
    return listener


def _allow_connections() -> None:
    """A stream takes two: raise the soft limit of open files to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
