"""Two vLLM engines with the NIXL connector, started once, and again where a test has ended them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.vllm_engine import VllmEngine
from tests.export.conftest import bundle_of, run_of  # noqa: F401  # fixtures

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter that has vLLM."""
    path = Path(os.environ.get("ENGINES", ".venv-engines")) / "bin" / "python"
    path = path if path.is_absolute() else _ROOT / path
    if not path.exists():
        pytest.skip(f"no environment with vLLM at {path.parents[1]}; make test-engines makes one")
    return path


@pytest.fixture(scope="session")
def model(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    folder = tmp_path_factory.mktemp("model")
    subprocess.run([python, Path(__file__).with_name("tiny_model.py"), folder], check=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def started(python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VllmEngine, ...]]:
    """Both engines; none is left behind."""
    logs = tmp_path_factory.mktemp("engines")
    engines = tuple(VllmEngine(name, python, model, logs / f"{name}.log") for name in ("prompt-0", "token-1"))
    try:
        yield engines
    finally:
        for engine in engines:
            engine.kill()


@pytest.fixture
def engines(started: tuple[VllmEngine, ...]) -> tuple[VllmEngine, ...]:
    """Both engines, serving."""
    for engine in started:
        engine.resume()
        if not engine.is_healthy():
            engine.start()
    for engine in started:
        engine.wait()
    return started
