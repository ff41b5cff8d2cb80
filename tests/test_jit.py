"""Compilation and its cache."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
from splitgym.hardware import load_profile
print(load_profile("llama2-70b", "h100-80gb").law.decode_s(1, 0))
"""


def run(environment: dict[str, str], code: str = CODE) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    return subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, check=True
    )


def test_importing_splitgym_imports_no_numba():
    assert run({}, "import sys, splitgym; print('numba' in sys.modules)").stdout.strip() == "False"


def test_cache_lies_where_the_environment_says(tmp_path):
    result = run({"NUMBA_CACHE_DIR": str(tmp_path)})
    assert "not cached" not in result.stderr
    assert list(tmp_path.rglob("latency.iteration_s-*.nbi"))


def test_one_warning_where_nothing_can_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    result = run({"NUMBA_CACHE_DIR": str(blocked)})
    assert float(result.stdout) > 0
    assert result.stderr.count("compiled functions are not cached") == 1
