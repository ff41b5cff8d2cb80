"""What the router costs: decisions, latency over calling the engines directly, open streams, chunks per second.

    python experiments/benchmark_router.py                   # about two minutes
    python experiments/benchmark_router.py --quick --json    # the headline figures

Engines, router and load are processes of their own on one machine. Latency: 200 requests/s of 16 output tokens over 16
emulated engines, in turns of a few seconds called directly (by a client that does both calls itself, on machines in
turn) and through the router (policy round-robin); the overhead is the difference of the quantiles, of TTFT or E2E,
whichever is larger, the median over the turns; once more with a trained bundle in place of round-robin. Chunks: engines
that emit as fast as they can, through the router and through a pass-through proxy of the same libraries; per second of
the proxy's own processor time, which other load hardly moves, and per second of the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import aiohttp
import numpy as np
import serving_processes  # beside this file
import uvicorn
from serving_processes import cpu_s, process, run_loop, session, work_elsewhere_s
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from splitgym.emulator import expected_text
from splitgym.export import export_policy
from splitgym.learn import NO_EVALUATION, train
from splitgym.machines import build_machines, parse_machines
from splitgym.router.books import RouterBooks
from splitgym.router.decide import Decider
from splitgym.router.metrics import Metrics
from splitgym.sim.cluster import Cluster
from splitgym.view import ARRIVAL

MODEL, HARDWARE = "llama2-70b", "h100-80gb"
RATE_RPS, OUTPUT_TOKENS, PROMPT_TOKENS = 200.0, 16, 64
ENGINES = 16
FIRST_PORT, PORT = 19_101, 19_100
FAST, SLOW, FASTEST = 10.0, 0.05, 1000.0  # emulated seconds in one of the clock
SLOW_STREAMS = 2000
Answer = tuple[float, float, bytes]  # TTFT, E2E, events
Figures = dict[str, float | int]


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter turns, fewer of them")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument("--pass-through", metavar="URL", help=argparse.SUPPRESS)  # what a proxy process runs
    arguments = parser.parse_args()
    if arguments.pass_through:
        pass_through(arguments.pass_through)
        return
    turns, turn_s = (3, 4.0) if arguments.quick else (7, 8.0)
    figures: Figures = {"decision_p99_ms": decision_p99_ms("splitwise-tuned", 5_000)}
    with tempfile.TemporaryDirectory() as folder:
        bundle = trained_bundle(Path(folder))
        figures["bundle_decision_p99_ms"] = decision_p99_ms(bundle, 5_000)
        gc.freeze()  # what is loaded
        figures |= run_loop(overhead(turns, turn_s, "round-robin"))
        with_bundle = run_loop(overhead(turns, turn_s, bundle))
        figures |= {f"bundle_{name}": with_bundle[name] for name in ("overhead_p50_ms", "overhead_p99_ms")}
        figures["overhead_errors"] += with_bundle["overhead_errors"]
    figures |= run_loop(slow_streams(SLOW_STREAMS, 12 if arguments.quick else 32))
    figures |= run_loop(chunks(3 if arguments.quick else 7))
    figures["errors"] = figures.pop("overhead_errors") + figures.pop("stream_errors") + figures.pop("chunk_errors")
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:32} {value:,.3f}" if isinstance(value, float) else f"{name:32} {value:,}")


# --- decisions ------------------------------------------------------------------------------------------------------


def trained_bundle(folder: Path) -> str:
    """A network of the default shape, trained for a moment: how well it decides makes no difference here."""
    run = train("Quickstart", out=folder / "run", num_envs=2, steps=512, evaluation=NO_EVALUATION, progress=False)
    export_policy(run, folder / "bundle.zip", decision="sample")
    return str(folder / "bundle.zip")


def decision_p99_ms(policy: str, count: int) -> float:
    """View and decision with 80 machines, by the clock."""
    machines = build_machines(parse_machines(f"prompt=40:{HARDWARE},token=40:{HARDWARE}"), MODEL, 8)
    cluster = Cluster(machines, machines[0].profile.model, machines[0].profile)
    books = RouterBooks(cluster)
    decider = Decider(cluster, policy, "lmetric", 0.05, 0, Metrics())

    async def measure() -> list[float]:
        seconds = []
        for number in range(count):
            started = time.perf_counter()
            tokens = 100 + number % 1000
            choice = await decider.decide(books.view(ARRIVAL, tokens, 200.0))
            books.assign(choice.decision.prompt_machine, choice.decision.token_machine, tokens, 200.0)
            seconds.append(time.perf_counter() - started)
        return seconds[100:]

    return 1000 * float(np.quantile(run_loop(measure()), 0.99))


# --- latency --------------------------------------------------------------------------------------------------------


async def overhead(turns: int, turn_s: float, policy: str) -> Figures:
    """Quantiles through the router less those of direct calls."""
    half = ENGINES // 2
    with (
        engines(f"prompt={half}:{HARDWARE},token={half}:{HARDWARE}", FAST) as urls,
        router(urls, half, FAST, policy=policy),
    ):
        async with session() as client:
            direct = Direct(client, urls[:half], urls[half:])
            routed = Routed(client, f"http://127.0.0.1:{PORT}")
            await offer(direct.ask, 2.0)
            await offer(routed.ask, 2.0)
            elsewhere, started_s = work_elsewhere_s(), time.perf_counter()
            differences: dict[str, list[float]] = {name: [] for name in ("p50", "p99")}
            by_kind: Figures = {}
            errors, errors_of_direct = 0, 0
            raw: dict[str, list[float]] = {}
            for _ in range(turns):
                without, errors_without = await offer(direct.ask, turn_s)
                through, errors_through = await offer(routed.ask, turn_s)
                errors += errors_through
                errors_of_direct += errors_without
                for name, level in (("p50", 0.5), ("p99", 0.99)):
                    more = 1000 * (np.quantile(through, level, axis=0) - np.quantile(without, level, axis=0))
                    differences[name].append(float(more.max()))
                    for place, kind in enumerate(("ttft", "e2e")):
                        raw.setdefault(f"direct_{kind}_{name}_ms", []).append(
                            1000 * float(np.quantile(without, level, axis=0)[place])
                        )
                        raw.setdefault(f"overhead_{kind}_{name}_ms", []).append(float(more[place]))
            by_kind |= {name: statistics.median(values) for name, values in raw.items()}
            overheads = {f"overhead_{name}_ms": statistics.median(values) for name, values in differences.items()}
            busy = (work_elsewhere_s() - elsewhere) / (time.perf_counter() - started_s)
            return (
                overheads
                | by_kind
                | {"cores_busy_elsewhere": busy, "direct_errors": errors_of_direct, "overhead_errors": errors}
            )


async def offer(ask: Callable[[int], Coroutine[Any, Any, Answer]], seconds: float) -> tuple[Any, int]:
    """Requests at the rate, however long they take; (requests, 2) TTFT and E2E, and how many went wrong."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    tasks = []
    for number in range(int(seconds * RATE_RPS)):
        await asyncio.sleep(max(started_s + number / RATE_RPS - loop.time(), 0.0))
        tasks.append(asyncio.create_task(ask(number)))
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    times, errors = [], 0
    for number, answer in enumerate(answers):
        if isinstance(answer, BaseException) or text_of(answer[2]) != expected_text(prompt(number), OUTPUT_TOKENS):
            errors += 1
        else:
            times.append(answer[:2])
    return np.array(times), errors


def prompt(number: int) -> list[int]:
    """The tokens of a prompt."""
    return [number] * PROMPT_TOKENS


def text_of(events: bytes) -> str:
    """What a stream said."""
    lines = (line[6:] for line in events.split(b"\n") if line.startswith(b"data: {"))
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines)


class Routed:
    """Asks the router."""

    def __init__(self, client: aiohttp.ClientSession, url: str) -> None:
        self._client = client
        self._url = f"{url}/v1/completions"

    async def ask(self, number: int, output_tokens: int = OUTPUT_TOKENS) -> Answer:
        """TTFT, E2E and the events."""
        body = {"model": MODEL, "prompt": prompt(number), "max_tokens": output_tokens, "stream": True}
        return await read(self._client, self._url, body, time.perf_counter())


class Direct:
    """Asks a prompt and a token engine, as a client would that knows the protocol."""

    def __init__(self, client: aiohttp.ClientSession, prompt_urls: list[str], token_urls: list[str]) -> None:
        self._client = client
        self._pairs = [
            (p + "/v1/completions", t + "/v1/completions") for p, t in zip(prompt_urls, token_urls, strict=True)
        ]

    async def ask(self, number: int) -> Answer:
        """TTFT, E2E and the events."""
        started_s = time.perf_counter()
        prompt_url, token_url = self._pairs[number % len(self._pairs)]
        body: dict[str, Any] = {"model": MODEL, "prompt": prompt(number)}
        keep = {"do_remote_decode": True, "do_remote_prefill": False}
        async with self._client.post(prompt_url, json=body | {"max_tokens": 1, "kv_transfer_params": keep}) as answer:
            params = (await answer.json())["kv_transfer_params"]
        body |= {"max_tokens": OUTPUT_TOKENS, "stream": True, "kv_transfer_params": params}
        return await read(self._client, token_url, body, started_s)


async def read(client: aiohttp.ClientSession, url: str, body: dict[str, Any], started_s: float) -> Answer:
    """TTFT, E2E and the events of a stream."""
    parts = []
    first_s = 0.0
    async with client.post(url, json=body) as answer:
        answer.raise_for_status()
        while part := await answer.content.readany():
            first_s = first_s or time.perf_counter()
            parts.append(part)
    return first_s - started_s, time.perf_counter() - started_s, b"".join(parts)


# --- many streams, many chunks --------------------------------------------------------------------------------------


async def slow_streams(count: int, output_tokens: int) -> Figures:
    """Open ``count`` streams that take long, and see how many are open at once, and that all end well."""
    half = ENGINES // 2
    with engines(f"prompt={half}:{HARDWARE},token={half}:{HARDWARE}", SLOW) as urls, router(urls, half, SLOW):
        async with session() as client:
            routed = Routed(client, f"http://127.0.0.1:{PORT}")
            tasks = []
            for number in range(count):
                tasks.append(asyncio.create_task(routed.ask(number, output_tokens)))
                await asyncio.sleep(0.001)
            most = 0
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0.25)
                async with client.get(f"http://127.0.0.1:{PORT}/metrics") as page:
                    text = await page.text()
                running = next(
                    line for line in text.splitlines() if line.startswith("splitgym_router_requests_running ")
                )
                most = max(most, int(float(running.split()[1])))
            answers = await asyncio.gather(*tasks, return_exceptions=True)
    wrong = sum(
        isinstance(answer, BaseException) or text_of(answer[2]) != expected_text(prompt(number), output_tokens)
        for number, answer in enumerate(answers)
    )
    return {"concurrent_streams": most, "stream_errors": wrong}


async def chunks(turns: int, streams: int = 64, output_tokens: int = 1024) -> Figures:
    """Chunks per second, through the router and through the pass-through proxy, in turns."""
    proxy_port = PORT - 1
    with (
        engines(f"mixed=4:{HARDWARE}", FASTEST) as urls,
        router(urls, 4, FASTEST, protocol="plain") as router_process,
        process(__file__, "--pass-through", urls[0], port=proxy_port) as proxy_process,
    ):
        async with session() as client:
            ways = {
                "router": (Routed(client, f"http://127.0.0.1:{PORT}"), router_process),
                "pass_through": (Routed(client, f"http://127.0.0.1:{proxy_port}"), proxy_process),
            }
            figures: dict[str, list[float]] = {}
            errors = 0
            for turn in range(turns + 1):
                for name, (way, running) in ways.items():
                    started_s, worked_s = time.perf_counter(), cpu_s(running.pid)
                    answers = await asyncio.gather(*(way.ask(n, output_tokens) for n in range(streams)))
                    took_s, took_cpu_s = time.perf_counter() - started_s, cpu_s(running.pid) - worked_s
                    sent = sum(events.count(b"data: {") for _, _, events in answers)
                    errors += sent != streams * output_tokens
                    if turn:  # the first is a warm-up
                        figures.setdefault(f"chunks_per_s_{name}", []).append(sent / took_s)
                        figures.setdefault(f"chunks_per_cpu_s_{name}", []).append(sent / took_cpu_s)
    return {name: statistics.median(values) for name, values in figures.items()} | {"chunk_errors": errors}


def pass_through(engine_url: str) -> None:
    """A proxy that does nothing: Starlette, uvicorn, aiohttp, one engine."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with session() as app.state.client:
            yield

    async def relay(request: Request) -> StreamingResponse:
        body = await request.body()
        answer = await request.app.state.client.post(
            engine_url + request.url.path, data=body, headers={"Content-Type": "application/json"}
        )
        return StreamingResponse(answer.content.iter_any(), answer.status, media_type="text/event-stream")

    async def health(request: Request) -> StreamingResponse:
        return StreamingResponse(iter([b""]))

    routes = [Route("/v1/completions", relay, methods=["POST"]), Route("/health", health)]
    uvicorn.run(Starlette(routes=routes, lifespan=lifespan), port=PORT - 1, log_level="critical", access_log=False)


def engines(machines: str, time_scale: float) -> AbstractContextManager[list[str]]:
    """Emulated engines; their addresses."""
    return serving_processes.engines(machines, MODEL, time_scale, FIRST_PORT)


def router(
    urls: list[str], prompts: int, time_scale: float, protocol: str = "vllm-nixl", policy: str = "round-robin"
) -> AbstractContextManager[Popen[bytes]]:
    """The router before them, the first ``prompts`` of which process prompts."""
    roles = ["mixed" if protocol == "plain" else "prompt" if n < prompts else "token" for n in range(len(urls))]
    engines = [
        {"name": f"engine-{n}", "url": url, "role": role, "hardware": HARDWARE}
        for n, (url, role) in enumerate(zip(urls, roles, strict=True))
    ]
    settings = {"port": PORT, "model": MODEL, "protocol": protocol, "time_scale": time_scale, "engines": engines}
    settings |= {"policy": {"name": policy}, "safety": {"silence_timeout_s": 600.0, "lease_s": 1e6}}
    return serving_processes.router(settings)


if __name__ == "__main__":
    main()
