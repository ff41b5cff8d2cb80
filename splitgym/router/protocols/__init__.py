"""How engines are talked to: vLLM's NIXL connector, SGLang, and engines that are not split."""

from splitgym.router.protocols.base import Attempt, PhaseProtocol
from splitgym.router.protocols.plain import Plain
from splitgym.router.protocols.sglang import SGLang
from splitgym.router.protocols.vllm_nixl import VllmNixl

PROTOCOLS: dict[str, type[PhaseProtocol]] = {"vllm-nixl": VllmNixl, "sglang": SGLang, "plain": Plain}
"""By their names in the configuration."""

__all__ = ["PROTOCOLS", "Attempt", "PhaseProtocol", "Plain", "SGLang", "VllmNixl"]
