"""Emulated engines and a router as processes of their own on loopback, for the scripts beside this file."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import uvloop
import yaml

_Result = TypeVar("_Result")

_START_S = 120.0


@contextmanager
def engines(machines: str, model: str, time_scale: float, first_port: int) -> Iterator[list[str]]:
    """Emulated engines, whose caches never expire; their addresses.

    Args:
        machines: see `splitgym.machines.parse_machines`.
        model: whose profiles time them.
        time_scale: emulated seconds in one of the clock.
        first_port: the first engine's; the control interface has the port three before it.
    """
    count = sum(int(group.partition("=")[2].partition(":")[0]) for group in machines.split(","))
    arguments = ["-m", "splitgym.cli", "emulate", "--machines", machines, "--model", model]
    arguments += ["--time-scale", str(time_scale), "--lease-s", "1e6"]
    arguments += ["--first-port", str(first_port), "--control-port", str(first_port - 3)]
    with process(*arguments, port=first_port + count - 1):
        yield [f"http://127.0.0.1:{first_port + number}" for number in range(count)]


@contextmanager
def router(settings: Mapping[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """A router with these settings (`splitgym.router.RouterConfig`)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "router.yaml"
        path.write_text(yaml.safe_dump(dict(settings)), "utf-8")
        with process("-m", "splitgym.cli", "serve", "--config", str(path), port=settings["port"]) as running:
            yield running


@contextmanager
def process(*arguments: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that answers ``/health`` on ``port``; it is asked to end, and has ended afterwards.

    Raises:
        RuntimeError: if it ends before, with what it said.
    """
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=said) as running,
    ):
        try:
            if not _answers(port, running):
                said.seek(0)
                raise RuntimeError(f"nothing answers on port {port}: {said.read().decode(errors='replace')[-500:]}")
            yield running
        finally:
            running.terminate()
            try:
                running.wait(60)
            except subprocess.TimeoutExpired:
                running.kill()


def _answers(port: int, running: subprocess.Popen[bytes]) -> bool:
    until_s = time.monotonic() + _START_S
    while running.poll() is None and time.monotonic() < until_s:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return True
        except OSError:
            time.sleep(0.05)
    return False


def run_loop(work: Coroutine[Any, Any, _Result]) -> _Result:
    """As `asyncio.run`, on the event loop that the router has, too."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def cpu_s(pid: int) -> float:
    """Processor time a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def work_elsewhere_s() -> float:
    """Processor time of all but this process and its children: overheads mean little where it grows fast (Linux)."""
    busy = sum(map(int, Path("/proc/stat").read_text("ascii").split()[1:4])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text("ascii").split()
    return busy - sum(cpu_s(int(pid)) for pid in [str(os.getpid()), *children])


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client without limits."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        yield client
