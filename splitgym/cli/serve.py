"""``splitgym serve``: the router."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from splitgym.errors import SplitgymError


def serve(
    config: Annotated[Path, typer.Option(metavar="ROUTER.yaml", help="Engines, policy, limits: see docs/router.md.")],
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Another port than the file's.")] = None,
    policy: Annotated[str | None, typer.Option(help="Another policy than the file's.")] = None,
) -> None:
    """Route requests to prompt and token engines until SIGTERM."""
    try:
        from splitgym.router.config import read_config
        from splitgym.router.router import Router
        from splitgym.router.server import serve as serve_router
    except ImportError as error:
        raise SplitgymError(f"{error}; the router needs pip install 'splitgym[router]'") from None

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = read_config(config)
    changes: dict[str, object] = {} if port is None else {"port": port}
    if policy is not None:
        changes["policy"] = settings.policy.model_copy(update={"name": policy})
    try:
        router = Router(settings.model_copy(update=changes), config.parent)
    except SplitgymError as error:
        raise SplitgymError(f"{config}: {error}") from None
    serve_router(router)
