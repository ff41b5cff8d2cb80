"""How a model's matrices and caches are divided among the ranks of a tensor-parallel group."""

from __future__ import annotations

from dataclasses import dataclass

from splitgym.errors import SplitgymError
from splitgym.hardware.models import ModelShape, ModelSpec


@dataclass(frozen=True)
class Widths:
    """Sizes of one rank's share.

    Raises:
        SplitgymError: if the model cannot be divided so.
    """

    spec: ModelSpec
    shape: ModelShape
    tensor_parallel: int

    def __post_init__(self) -> None:
        if self.shape.heads % self.tensor_parallel:
            raise SplitgymError(
                f"tensor_parallel: {self.tensor_parallel} does not divide the {self.shape.heads} heads of"
                f" {self.spec.name}; give one that does"
            )

    @property
    def heads(self) -> int:
        """Heads of queries."""
        return self.shape.heads // self.tensor_parallel

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; copied where there are fewer than ranks."""
        return max(1, self.spec.kv_heads // self.tensor_parallel)

    @property
    def vocabulary(self) -> int:
        """Rows of the head."""
        return -(-self.shape.vocabulary // self.tensor_parallel)

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(out, in) of a layer's matrix products."""
        attended, inner = self.heads * self.spec.head_dim, self.shape.feed_forward // self.tensor_parallel
        return {
            "qkv_proj": (attended + 2 * self.kv_heads * self.spec.head_dim, self.shape.hidden),
            "o_proj": (self.shape.hidden, attended),
            "gate_up_proj": (inner * (2 if self.shape.gated else 1), self.shape.hidden),
            "down_proj": (self.shape.hidden, inner),
        }

    @property
    def layer_elements(self) -> int:
        """Weights of one layer."""
        return sum(out * into for out, into in self.matrices.values())

    @property
    def cache_elements(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.spec.head_dim

    @property
    def small_kernels(self) -> tuple[int, ...]:
        """Elements that each of a layer's small kernels reads and writes for one token.

        Two norms with their residuals, rotation of queries and keys, the write to the cache, the activation;
        norms of queries and keys where the model has them.
        """
        rotated = 2 * (self.heads * self.spec.head_dim + self.cache_elements // 2)
        activated = sum((self.matrices["gate_up_proj"][0], self.matrices["down_proj"][1]))
        norm = 4 * self.shape.hidden
        kernels = (norm, norm, rotated, 2 * self.cache_elements, activated)
        return (*kernels, rotated) if self.shape.query_key_norm else kernels
