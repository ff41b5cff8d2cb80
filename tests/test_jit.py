"""Compilation and its cache."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import splitgym

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


def test_what_has_no_entry_from_python_is_not_called_from_there():
    """Such a call would end the process without a word."""
    root, tests = Path(splitgym.__file__).parents[1], Path(__file__).parent
    files = [*(root / "splitgym").rglob("*.py"), *tests.rglob("*.py")]
    trees = {
        ".".join(path.relative_to(tests.parent if tests in path.parents else root).with_suffix("").parts): ast.parse(
            path.read_text()
        )
        for path in files
    }
    kinds = {"inner_njit", "seldom_njit", "merged_njit"}
    inner = {
        (module, node.name)
        for module, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and kinds & {ast.unparse(one) for one in node.decorator_list}
    }
    assert ("splitgym.sim.compiled.loop", "step") in inner
    wrong = []
    for module, tree in trees.items():
        known = {name for where, name in inner if where == module}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                known |= {one.name for one in node.names if (node.module, one.name) in inner}
        for node in ast.walk(tree):
            is_python = isinstance(node, ast.FunctionDef) and not any(
                "njit" in ast.unparse(d) for d in node.decorator_list
            )
            calls = [one.func for one in ast.walk(node) if isinstance(one, ast.Call)] if is_python else []
            wrong += [(module, func.id) for func in calls if isinstance(func, ast.Name) and func.id in known]
    assert not wrong
