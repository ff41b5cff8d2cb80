"""Policies of other people's: a class in any file, or one that a package offers."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
import zlib
from pathlib import Path
from typing import Any

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.policies.base import Policy
from splitgym.sim.cluster import Cluster, Scenario
from splitgym.view import ClusterView, Decision


class UserPolicy:
    """Somebody's policy, so wrapped that a mistake in it becomes one line that says where.

    It needs ``decide(view)``; ``reset(cluster, seed)``, ``observe_scenario(scenario)`` and ``name`` may be
    there.
    """

    def __init__(self, inner: Any, place: str, name: str) -> None:
        self.inner = inner
        self.place = place
        self.name = name

    @classmethod
    def of_class(cls, factory: Any, place: str, name: str) -> Policy:
        """Make one with ``factory()``; the policy itself where that already is one that needs no wrapping.

        Raises:
            SplitgymError: if it cannot be made, or has no ``decide``.
        """
        if not callable(getattr(factory, "decide", None)):
            raise SplitgymError(f"{place}: {name} has no decide(view); see splitgym.policies.Policy")
        try:
            inner = factory() if inspect.isclass(factory) else factory
        except Exception as error:
            raise SplitgymError(f"{place}: {name}(): {_describe(error)}") from error
        own_name = getattr(inner, "name", None)
        return cls(inner, place, own_name if isinstance(own_name, str) and own_name else name)

    def reset(self, cluster: Cluster, seed: int) -> None:
        """Pass it on."""
        self._call("reset", cluster, seed, needed=False)

    def observe_scenario(self, scenario: Scenario) -> None:
        """Pass it on."""
        self._call("observe_scenario", scenario, needed=False)

    def decide(self, view: ClusterView) -> Decision:
        """Ask it.

        Raises:
            SplitgymError: if it fails, or returns something else than a Decision.
        """
        decision = self._call("decide", view)
        if not isinstance(decision, Decision):
            raise SplitgymError(f"{self.place}: {self.name}.decide() returned {decision!r}; return a Decision")
        return decision

    def _call(self, method: str, *arguments: object, needed: bool = True) -> Any:
        if not needed and not hasattr(self.inner, method):
            return None
        try:
            return getattr(self.inner, method)(*arguments)
        except SplitgymError:
            raise
        except Exception as error:
            raise SplitgymError(f"{self.place}: {self.name}.{method}(): {_describe(error)}") from error


def policy_from_file(path: Path, class_name: str) -> Policy:
    """The policy ``class_name`` of the Python file ``path``.

    Raises:
        SplitgymError: if the file is missing or fails to import, or has no such class, or that has no
        ``decide``.
    """
    if not path.is_file():
        raise SplitgymError(f"{path}: no such file; give a policy as FILE.py:CLASS")
    name = f"splitgym_user_{zlib.crc32(str(path.resolve()).encode()):08x}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SplitgymError(f"{path}: not a Python file; give a policy as FILE.py:CLASS")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickles look for it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise SplitgymError(f"{path}: {_describe(error)}") from error
    factory = getattr(module, class_name, None)
    if not inspect.isclass(factory):
        classes = [name for name, value in vars(module).items() if _defined_in(value, module.__name__)]
        raise SplitgymError(f"{path}: no class {class_name!r}{did_you_mean(class_name, classes)}")
    return UserPolicy.of_class(factory, str(path), class_name)


def _defined_in(value: object, module: str) -> bool:
    return inspect.isclass(value) and value.__module__ == module


def _describe(error: BaseException) -> str:
    """The error in one line, with the file and line it came from."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: SyntaxError: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    return f"{place}{type(error).__name__}: {' '.join(str(error).split())}"
