"""The admin's interface, behind its own key: engines, roles, the policy and its shadow, while requests run."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.router.ask import BadRequest
from splitgym.router.router import Router
from splitgym.view import LIFECYCLES, ROLES

Endpoint = Callable[[Request], Awaitable[Response]]


def admin_routes(router: Router, checked: Callable[[Router, Endpoint], Endpoint]) -> list[Route]:
    """``GET /admin/engines`` and ``/admin/policy``; ``POST /admin/roles``, ``/admin/policy`` and ``/admin/shadow``."""

    async def engines(request: Request) -> Response:
        router.limits.check_admin(request)
        return JSONResponse([_describe(router, index) for index in range(len(router.engines))])

    async def roles(request: Request) -> Response:
        body = await _body(router, request, {"engine": str, "role": str})
        names = [engine.name for engine in router.engines]
        name, role = body["engine"], body["role"]
        if name not in names:
            raise BadRequest(404, f"engine: unknown {name!r}{did_you_mean(name, names)}")
        if role not in ROLES:
            raise BadRequest(400, f"role: unknown {role!r}{did_you_mean(role, ROLES)}")
        index = names.index(name)
        if not router.roles.change(index, ROLES.index(role)):
            state = _describe(router, index)
            now = f"it is {state['role']} and {state['lifecycle']}"
            raise BadRequest(409, f"{name} may not become {role} now: {now}; both phases must keep an engine")
        return JSONResponse(_describe(router, index), 202)

    async def policy(request: Request) -> Response:
        if request.method == "POST":
            body = await _body(router, request, {"policy": str})
            await _swap(router.decider.swap, _permitted(router, body["policy"]))
        else:
            router.limits.check_admin(request)
        return JSONResponse({"policy": router.decider.policy_name, "shadow": router.decider.shadow_name})

    async def shadow(request: Request) -> Response:
        body = await _body(router, request, {"policy": str | None})
        name = body["policy"]
        await _swap(router.decider.swap_shadow, None if name is None else _permitted(router, name))
        return JSONResponse({"policy": router.decider.policy_name, "shadow": router.decider.shadow_name})

    return [
        Route("/admin/engines", checked(router, engines)),
        Route("/admin/roles", checked(router, roles), methods=["POST"]),
        Route("/admin/policy", checked(router, policy), methods=["GET", "POST"]),
        Route("/admin/shadow", checked(router, shadow), methods=["POST"]),
    ]


async def _body(router: Router, request: Request, shape: dict[str, Any]) -> dict[str, Any]:
    """The fields of ``shape``, and nothing else."""
    router.limits.check_admin(request)
    try:
        body = json.loads(await router.limits.read_body(request))
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or body.keys() != shape.keys():
        raise BadRequest(400, f"send an object with: {', '.join(shape)}")
    for name, kind in shape.items():
        if not isinstance(body[name], kind):
            raise BadRequest(400, f"{name}: give a text")
    return body


def _permitted(router: Router, policy: str) -> str:
    if ".py" in policy and not router.config.policy.python_files:
        raise BadRequest(403, "policy: no Python files; set policy.python_files in the configuration to permit them")
    return policy


async def _swap(swap: Callable[[Any], Awaitable[None]], policy: str | None) -> None:
    try:
        await swap(policy)
    except SplitgymError as error:
        raise BadRequest(400, str(error)) from None


def _describe(router: Router, index: int) -> dict[str, Any]:
    engine = router.engines[index]
    return {
        "name": engine.name,
        "url": engine.url,
        "role": ROLES[router.books.role_of(index)],
        "lifecycle": LIFECYCLES[router.books.lifecycle_of(index)],
        "in_flight": router.books.in_flight(index),
        "scrape_age_s": round(router.telemetry.age_s(engine), 3),
    }
