"""vLLM's own server in processes of its own, and the faults that it can be given."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

MODEL = "tiny"
LEASE_S = 30.0  # vLLM's own default
MOST_RUNNING = 8
START_S = 600.0  # on a busy machine; 25 s on a quiet one

_HERE = Path(__file__).parent
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no worker process beside the engine's core: it may sleep through a message
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "UCX_TLS": "tcp,self,sm",
    "UCX_NET_DEVICES": "lo",
    "HF_HUB_OFFLINE": "1",
}
_ARGUMENTS = ["--host", "127.0.0.1", "--served-model-name", MODEL, "--dtype", "float32", "--enforce-eager"]
_ARGUMENTS += ["--max-num-seqs", str(MOST_RUNNING), "--max-model-len", "8192", "--kv-cache-memory-bytes", "134217728"]
_CONNECTOR = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}


class VllmEngine:
    """One engine: a server's process and its core's. It keeps its ports when it is started again.

    Args:
        name: of the engine.
        python: the interpreter of the environment that has vLLM.
        model: the model's folder.
        log: the file its output is added to.
    """

    def __init__(self, name: str, python: Path, model: Path, log: Path) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{_free_port()}"
        self._log = log
        self._command = [str(python), str(_HERE / "serve.py"), "--model", str(model), *_ARGUMENTS]
        self._command += ["--port", self.url.rsplit(":", 1)[1], "--kv-transfer-config", json.dumps(_CONNECTOR)]
        self._environment = os.environ | _ENVIRONMENT | {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(_free_port())}
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether its server's process lives; it may still be starting, or hang."""
        return self._server is not None and self._server.poll() is None

    def is_healthy(self) -> bool:
        """Whether it serves."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def start(self) -> None:
        """Start it, empty, without waiting until it serves."""
        self.kill()
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it serves.

        Raises:
            RuntimeError: if it ends instead, with the last of its log.
        """
        ends_s = time.monotonic() + START_S
        while time.monotonic() < ends_s and self.is_running:
            if self.is_healthy():
                return
            time.sleep(0.5)
        tail = self._log.read_text("utf-8", "replace")[-3000:]
        self.kill()
        raise RuntimeError(f"{self.name} has not started; see {self._log}, which ends\n{tail}")

    def kill(self) -> None:
        """End all its processes: a core outlives its server where that alone is killed."""
        if self._server is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
        self._server = None

    def send(self, number: signal.Signals) -> None:
        """Send its server's process a signal."""
        assert self._server is not None
        os.kill(self._server.pid, number)

    def hang(self) -> None:
        """Nothing of it answers."""
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGSTOP)

    def freeze_core(self) -> None:
        """Its server takes requests, and its core does not work on them."""
        os.kill(self.core(), signal.SIGSTOP)

    def kill_core(self) -> None:
        """Its server finds out, and ends, too."""
        os.kill(self.core(), signal.SIGKILL)

    def resume(self) -> None:
        """Go on, if there is anything that can."""
        if self._server is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGCONT)

    def core(self) -> int:
        """The process id of its core."""
        assert self._server is not None
        folder = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children")
        for child in folder.read_text("utf-8").split():
            if "EngineCore" in Path(f"/proc/{child}/cmdline").read_text("utf-8", "replace"):
                return int(child)
        raise RuntimeError(f"{self.name} has no core")


def _free_port() -> int:
    """One that is free now, below those that the system hands out by itself."""
    for port in range(20_000 + os.getpid() % 5_000, 32_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port not in _taken:
                _taken.add(port)
                return port
    raise RuntimeError("no free port from 20000 to 32000")


_taken: set[int] = set()
