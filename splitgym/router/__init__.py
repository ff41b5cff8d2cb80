"""The serving router: an OpenAI-compatible proxy before prompt and token engines, driven by any policy."""

from splitgym.router.app import create_app
from splitgym.router.config import RouterConfig, read_config
from splitgym.router.router import Router

__all__ = ["Router", "RouterConfig", "create_app", "read_config"]
