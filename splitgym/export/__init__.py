"""Policy bundles: any policy as a small, checked, versioned file, and the runtime that decides with one.

The runtime (`Bundle`) needs numpy and onnxruntime alone; what needs more is imported at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from splitgym.export.manifest import Manifest
from splitgym.export.runtime import Bundle

if TYPE_CHECKING:
    from splitgym.export.build import export_policy
    from splitgym.export.policy import BundlePolicy, bundle_policy

_NEED_MORE = {"BundlePolicy": "policy", "bundle_policy": "policy", "export_policy": "build"}

__all__ = ["Bundle", "BundlePolicy", "Manifest", "bundle_policy", "export_policy"]


def __getattr__(name: str) -> Any:
    if name not in _NEED_MORE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NEED_MORE[name]}"), name)
