"""A trace through the router before emulated engines, for sim_to_serving.py: in processes, or in virtual time."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import numpy as np
import numpy.typing as npt
import uvicorn
from serving_processes import engines, router, run_loop, session  # beside this file

from splitgym.cards import Card
from splitgym.emulator import Fleet, expected_text
from splitgym.emulator.fleet import QuietServer
from splitgym.emulator.virtual_time import run_in_virtual_time
from splitgym.offline import Logged, read_decision_log
from splitgym.router import Router, RouterConfig, create_app
from splitgym.router.server import bind
from splitgym.sim.cluster import Batching, Cluster, Scenario
from splitgym.sim.rows import COMPLETED, RequestRows
from splitgym.workload import Requests
from splitgym.workload.base import REFERENCE_REQUESTS
from splitgym.workload.prediction import OutputPredictor

FloatArray = npt.NDArray[np.float64]
Played = tuple[RequestRows, Logged, int]
"""What clients saw, what was decided, and how many answers were wrong."""

SCRAPE_S = 0.05
"""Emulated seconds between scrapes."""

BYTES_PER_TOKEN = 4
"""Prompts are texts; router and emulated engines count a token for so many bytes."""


@dataclass(frozen=True)
class Answer:
    """What a client saw; times from the request's sending on, by the clock."""

    ttft_s: float
    e2e_s: float
    events: bytes


class Side(Protocol):
    """Plays a trace; each policy has a router of its own."""

    def play(self, scenario: Scenario, policy: str) -> Played:
        """The scenario's requests, sent when they arrive."""
        ...


@contextmanager
def in_processes(card: Card, cluster: Cluster, time_scale: float, port: int) -> Iterator[Side]:
    """Engines, router and load as processes on loopback, by the clock.

    Args:
        card: whose outputs are predicted.
        cluster: whose machines are emulated.
        time_scale: emulated seconds in one of the clock.
        port: the router's; the engines have those after the next three.
    """
    groups = ",".join(f"{machine.role_name}=1:{machine.profile.hardware}" for machine in cluster.machines)
    with engines(groups, cluster.model.name, time_scale, port + 4) as urls:
        yield InProcesses(_settings(card, cluster) | {"port": port, "time_scale": time_scale}, urls)


@dataclass(frozen=True)
class InProcesses:
    """Engines that run."""

    settings: dict[str, Any]
    urls: list[str]

    def play(self, scenario: Scenario, policy: str) -> Played:
        """See `Side`."""
        requests, scale = scenario.requests, self.settings["time_scale"]
        model, url = scenario.cluster.model.name, f"http://127.0.0.1:{self.settings['port']}"
        with tempfile.TemporaryDirectory() as folder:
            settings = _settings_of(self.settings, scenario, policy, self.urls, folder)
            with router(settings):
                answers = run_loop(offered(url, model, requests, scale, time.perf_counter))
            return _played(requests, answers, scale, Path(folder))


@dataclass(frozen=True)
class InVirtualTime:
    """Engines, router and load in one event loop, in which computing takes no time.

    Args:
        card: whose outputs are predicted.
    """

    card: Card

    def play(self, scenario: Scenario, policy: str) -> Played:
        """See `Side`."""
        with tempfile.TemporaryDirectory() as folder:
            answers = run_in_virtual_time(self._answers(scenario, policy, folder))
            return _played(scenario.requests, answers, 1.0, Path(folder))

    async def _answers(self, scenario: Scenario, policy: str, folder: str) -> list[Answer]:
        cluster, clock = scenario.cluster, asyncio.get_running_loop().time
        assert isinstance(cluster.batching, Batching)
        overhead_s = cluster.transfer.overhead_s
        fleet = Fleet(
            cluster.machines,
            cluster.model.name,
            batching=cluster.batching,
            lease_s=1e6,
            transfer_overhead_s=overhead_s,
        )
        async with fleet.running():
            urls = [place.url for place in fleet.places]
            settings = _settings_of(_settings(self.card, cluster), scenario, policy, urls, folder)
            listener = bind("127.0.0.1", 0)
            app = create_app(Router(RouterConfig.model_validate(settings), clock=clock))
            server = QuietServer(uvicorn.Config(app, log_level="critical", access_log=False))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            answers = await offered(url, cluster.model.name, scenario.requests, 1.0, clock)
            server.should_exit = True
            await serving
        return answers


def _settings(card: Card, cluster: Cluster) -> dict[str, Any]:
    """A router's, whoever decides."""
    predictor = OutputPredictor.fit(*card.workload.reference(REFERENCE_REQUESTS))
    return {
        "model": cluster.model.name,
        "time_scale": 1.0,
        "safety": {"silence_timeout_s": 600.0, "lease_s": 1e6},
        "prediction": {
            "bytes_per_token": BYTES_PER_TOKEN,
            "prompt_edges_tokens": predictor.edges_tokens.tolist(),
            "mean_output_tokens": predictor.mean_output_tokens.tolist(),
            "cap_at_max_tokens": False,
        },
    }


def _settings_of(
    settings: dict[str, Any], scenario: Scenario, policy: str, urls: Sequence[str], folder: str
) -> dict[str, Any]:
    engines = [
        {"name": f"engine-{n}", "url": url, "role": machine.role_name, "hardware": machine.profile.hardware}
        for n, (url, machine) in enumerate(zip(urls, scenario.cluster.machines, strict=True))
    ]
    scrape = {"interval_s": SCRAPE_S / settings["time_scale"]}
    decider = {"name": policy, "seed": scenario.seed, "tick_s": scenario.tick_s, "timeout_ms": 1000.0}
    log = {"folder": folder, "rows_per_file": 100_000}
    return settings | {"engines": engines, "policy": decider, "telemetry": scrape, "log": log}


# --- clients --------------------------------------------------------------------------------------------------------


async def offered(
    url: str, model: str, requests: Requests, time_scale: float, clock: Callable[[], float]
) -> list[Answer]:
    """Answers to requests that are sent when they arrive."""
    loop = asyncio.get_running_loop()
    async with session() as client:
        started_s = loop.time() + 0.1
        tasks: list[asyncio.Task[Answer]] = []
        for number, arrival_s in enumerate(requests.arrival_s):
            await asyncio.sleep(max(started_s + arrival_s / time_scale - loop.time(), 0.0))
            body = {"model": model, "prompt": prompt(number, requests), "stream": True}
            body["max_tokens"] = int(requests.output_tokens[number])
            tasks.append(asyncio.create_task(ask(client, f"{url}/v1/completions", body, clock)))
        return await asyncio.gather(*tasks)


async def ask(client: aiohttp.ClientSession, url: str, body: dict[str, Any], clock: Callable[[], float]) -> Answer:
    """One request, streamed."""
    parts: list[bytes] = []
    first_s = last_s = float("nan")
    started_s = clock()
    async with client.post(url, json=body) as answer:
        answer.raise_for_status()
        while part := await answer.content.readany():
            last_s = clock()
            first_s = first_s if parts else last_s
            parts.append(part)
    return Answer(first_s - started_s, last_s - started_s, b"".join(parts))


def prompt(number: int, requests: Requests) -> str:
    """A text of as many tokens as the request's prompt."""
    return f"{number % 10_000:0{BYTES_PER_TOKEN}d}" * int(requests.prompt_tokens[number])


def text_of(events: bytes) -> str:
    """What a stream said."""
    lines = (line[6:] for line in events.split(b"\n") if line.startswith(b"data: {"))
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines)


def _played(requests: Requests, answers: Sequence[Answer], time_scale: float, folder: Path) -> Played:
    wrong = sum(
        text_of(answer.events) != expected_text(prompt(number, requests), int(requests.output_tokens[number]))
        for number, answer in enumerate(answers)
    )
    count = len(requests)
    unknown, nowhere = np.full(count, np.nan), np.full(count, -1)
    finish_s = requests.arrival_s + time_scale * np.array([answer.e2e_s for answer in answers])
    rows = RequestRows(
        arrival_s=requests.arrival_s,
        prompt_tokens=requests.prompt_tokens,
        output_tokens=requests.output_tokens,
        prompt_machine=nowhere,
        token_machine=nowhere,
        prompt_start_s=unknown,
        first_token_s=requests.arrival_s + time_scale * np.array([answer.ttft_s for answer in answers]),
        transfer_end_s=unknown,
        finish_s=finish_s,
        tbt_max_s=unknown,
        status=np.full(count, COMPLETED),
        end_s=float(finish_s.max()),
    )
    return rows, read_decision_log(folder), wrong
