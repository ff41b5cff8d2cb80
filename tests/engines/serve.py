"""vLLM's server with a NIXL whose progress thread sleeps between two looks; takes the server's arguments.

NIXL's Python interface sets the thread's delay to 0, with which it keeps a core busy in every idle engine. Run with
the Python of the engines; processes that vLLM starts from this one do as it does, whether forked or spawned.
"""

from __future__ import annotations

import os
import runpy

os.environ.setdefault("UCX_RCACHE_MAX_UNRELEASED", "1024")  # vLLM would, had NIXL not been imported before it

from nixl import _bindings

DELAY_US = 2_000


Config = _bindings.nixlAgentConfig


class Unhurried(Config):  # type: ignore[misc, valid-type]
    """Whoever sets the delay sets at least `DELAY_US`."""

    @property
    def pthrDelay(self) -> int:  # NIXL's name
        """Microseconds between two looks of the progress thread."""
        return int(Config.pthrDelay.fget(self))

    @pthrDelay.setter
    def pthrDelay(self, microseconds: int) -> None:
        Config.pthrDelay.fset(self, max(microseconds, DELAY_US))


_bindings.nixlAgentConfig = Unhurried

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
