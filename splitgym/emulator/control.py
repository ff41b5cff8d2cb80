"""A fleet's own interface: what runs where, and faults at the press of a button."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from splitgym.emulator.fleet import Fleet, Place, QuietServer
from splitgym.errors import did_you_mean

FAULTS = ("kill", "crash", "terminate", "mute", "start", "hang", "resume", "slow", "blind", "see")


def control_app(fleet: Fleet) -> Starlette:
    """``GET /engines``, and ``POST /engines/NAME/FAULT`` (``slow?factor=4``)."""

    async def list_engines(request: Request) -> Response:
        return JSONResponse([_describe(place) for place in fleet.places])

    async def fault(request: Request) -> Response:
        name, kind = request.path_params["name"], request.path_params["fault"]
        names = [place.name for place in fleet.places]
        if name not in names:
            return JSONResponse({"error": f"unknown engine {name!r}{did_you_mean(name, names)}"}, 404)
        try:
            factor = float(request.query_params.get("factor", "1"))
            await _give(fleet, name, kind, factor)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(_describe(fleet[name]))

    return Starlette(
        routes=[Route("/engines", list_engines), Route("/engines/{name}/{fault}", fault, methods=["POST"])],
    )


async def _give(fleet: Fleet, name: str, kind: str, factor: float) -> None:
    place = fleet[name]
    if kind not in FAULTS:
        raise ValueError(f"unknown fault {kind!r}{did_you_mean(kind, FAULTS)}")
    if kind == "start":
        if place.engine is not None:
            raise ValueError(f"{name} runs already; kill it first")
        await fleet.start(name)
        return
    if place.engine is None or place.api is None:
        raise ValueError(f"{name} does not run; start it first")
    if kind == "kill":
        fleet.kill(name)
    elif kind == "crash":
        fleet.crash(name)
    elif kind in ("terminate", "mute"):
        fleet.terminate(name, in_silence=kind == "mute")
    elif kind == "hang":
        place.engine.free_to_run.clear()
    elif kind == "resume":
        place.engine.free_to_run.set()
    elif kind == "slow":
        if not 0 < factor < float("inf"):
            raise ValueError(f"factor: {factor:g}; give a number above 0")
        place.engine.slowness = factor
    else:
        place.api.metrics_are_blind = kind == "blind"


def _describe(place: Place) -> dict[str, Any]:
    engine = place.engine
    state: dict[str, Any] = {"name": place.name, "role": place.machine.role_name, "url": place.url}
    state["hardware"] = place.machine.profile.hardware
    state["running"] = engine is not None
    if engine is not None:
        state["decodes"] = len(engine.decodes)
        state["queued_prompts"] = len(engine.queue)
        state["kv_reserved_tokens"] = engine.used
    return state


def run_fleet(fleet: Fleet, control_port: int) -> None:
    """Engines and their control interface, until SIGTERM or SIGINT.

    Raises:
        OSError: if a port is taken.
    """
    settings = uvicorn.Config(control_app(fleet), log_level="critical", access_log=False, lifespan="off")
    gc.collect()
    gc.freeze()  # what is loaded stays: a full collection that walks through it would hold up every engine
    with asyncio.Runner(loop_factory=settings.get_loop_factory()) as runner:
        runner.run(_run(fleet, control_port, QuietServer(settings)))


async def _run(fleet: Fleet, control_port: int, control: QuietServer) -> None:
    listener = socket.create_server(("127.0.0.1", control_port))
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    async with fleet.running():
        serving = asyncio.create_task(control.serve(sockets=[listener]))
        for place in fleet.places:
            print(f"{place.name} {place.url}", flush=True)
        print(f"control http://127.0.0.1:{control_port}", flush=True)
        await over.wait()
        control.should_exit = True
        await serving
