"""From operator tables to a model's iterations: what each kernel of a tensor-parallel shard takes, added up.

An iteration is, for each layer, the matrix products into and out of attention and of the feed-forward layer over
all tokens of the batch, attention, two all-reduces, and small kernels; and the head over all sequences. Not in
it: the host's time, the embedding, the gathering of logits, and the sampler.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitgym.errors import SplitgymError
from splitgym.hardware.models import MachineSpec, ModelShape, ModelSpec
from splitgym.hardware.operators import FloatArray, Operators, Surface
from splitgym.hardware.widths import Widths

IntArray = npt.NDArray[np.int64]

LEAST_KERNEL_S = 2.5e-6
"""A small kernel however little it moves, inside a CUDA graph: norms, rotation and activation took 1.9 to 2.7 µs in
the profiles of LLMServingSim 2 (MIT), which are of other GPUs; declared here."""

NUM_PARTS = 9
"""Kernels of an iteration whose times may err each by itself."""


@dataclass(frozen=True)
class Batches:
    """Batches of equal prompts and equal decodes; every field (num_batches,)."""

    prompts: IntArray
    chunk: IntArray  # tokens of each prompt in this iteration
    context: IntArray  # tokens of each prompt already in the cache
    decodes: IntArray
    decode_context: IntArray  # tokens each decode attends to

    @property
    def prompt_tokens(self) -> IntArray:
        """Prompt tokens in each batch, (num_batches,)."""
        return self.prompts * self.chunk

    @property
    def features(self) -> IntArray:
        """(num_batches, 6), in the order `iteration_s` takes them after the law."""
        pairs = self.prompt_tokens * (2 * self.context + self.chunk)
        sums = (self.prompt_tokens, self.prompts, pairs, self.prompts * self.context, self.decodes)
        return np.stack([*sums, self.decodes * self.decode_context], axis=1)


@dataclass(frozen=True)
class _Product:
    """A matrix product with the shard's weights: never faster than reading them, however warm the table's cache."""

    seconds: Surface  # over tokens
    least_s: float

    def __call__(self, tokens: IntArray) -> FloatArray:
        return np.maximum(self.seconds(np.maximum(tokens, 1)), self.least_s)


class Composition:
    """Iteration times of one model on one tensor-parallel group, never falling in any field of a batch.

    Raises:
        SplitgymError: if the model cannot be divided so, does not fit the memory, or the tables have no times.
    """

    def __init__(
        self, operators: Operators, model: ModelSpec, shape: ModelShape, machine: MachineSpec, tensor_parallel: int
    ) -> None:
        _check(operators, model, shape, machine, tensor_parallel)
        self._layers, self._hidden = model.layers, shape.hidden
        self._bytes_per_s = machine.hbm_bytes_per_s_per_gpu
        element = model.bytes_per_element
        widths = Widths(model, shape, tensor_parallel)

        def product(n: int, k: int) -> _Product:
            return _Product(operators.gemm(n, k), n * k * element / self._bytes_per_s)

        self._products = [product(*size) for size in widths.matrices.values()]
        self._head = product(widths.vocabulary, shape.hidden)
        self._prefill = operators.prefill_attention(widths.heads, widths.kv_heads)
        self._decode = operators.decode_attention(widths.heads, widths.kv_heads)
        self._cache_bytes = widths.cache_elements * element
        self._all_reduce = operators.all_reduce(tensor_parallel) if tensor_parallel > 1 else None
        moved = widths.small_kernels
        self._small_kernels, self._small_bytes = len(moved), element * sum(moved)  # bytes of one token

    def __call__(self, batches: Batches) -> FloatArray:
        """Seconds of each batch, (num_batches,)."""
        seconds: FloatArray = self.parts(batches).sum(axis=0)
        return seconds

    def parts(self, batches: Batches) -> FloatArray:
        """Seconds each kernel takes in an iteration, all layers, (NUM_PARTS, num_batches).

        Four matrix products, all-reduces, small kernels, attention of prompts, of decodes, and the head.
        """
        tokens = batches.prompt_tokens + batches.decodes
        reduced = np.zeros(len(tokens))
        if self._all_reduce is not None:
            reduced = 2 * self._all_reduce(np.maximum(tokens, 1) * self._hidden)
        in_a_layer = [
            *(product(tokens) for product in self._products),
            reduced,
            self._small_kernels * LEAST_KERNEL_S + self._small_bytes * tokens / self._bytes_per_s,
            self._prompts_s(batches),
            self._decodes_s(batches.decodes, batches.decode_context),
        ]
        head = self._head(batches.prompts + batches.decodes)
        return np.stack([*(self._layers * seconds for seconds in in_a_layer), head])

    def _prompts_s(self, batches: Batches) -> FloatArray:
        """A chunk with context takes what a prompt with as many (query, key) pairs does, and no less than a decode."""
        alike = np.sqrt(batches.chunk * (batches.chunk + 2.0 * batches.context))
        seconds = self._prefill(np.maximum(batches.prompts, 1), np.maximum(alike, 1))
        reading = self._decodes_s(batches.prompts, batches.context + batches.chunk)
        longest: FloatArray = np.where(batches.prompt_tokens > 0, np.maximum(seconds, reading), 0.0)
        return longest

    def _decodes_s(self, decodes: IntArray, context: IntArray) -> FloatArray:
        seconds = self._decode(np.maximum(decodes, 1), np.maximum(context, 1))
        reading = self._cache_bytes * decodes * context / self._bytes_per_s
        longest: FloatArray = np.where(decodes > 0, np.maximum(seconds, reading), 0.0)
        return longest


def _check(
    operators: Operators, model: ModelSpec, shape: ModelShape, machine: MachineSpec, tensor_parallel: int
) -> None:
    sizes = [size for size in operators.group_sizes() if shape.heads % size == 0 and size <= machine.gpus]
    if tensor_parallel not in sizes:
        raise SplitgymError(
            f"tensor_parallel: {tensor_parallel} does not divide {model.name} on a machine of {machine.gpus}"
            f" GPUs with all-reduce times; one of: {', '.join(map(str, sizes))}"
        )
    hbm_bytes = tensor_parallel * machine.hbm_bytes_per_gpu
    if model.kv_capacity_tokens(hbm_bytes) < 1:
        raise SplitgymError(
            f"tensor_parallel: {tensor_parallel}: {model.weight_bytes / 1e9:.0f} GB of weights of {model.name} do not"
            f" fit 0.9 x {hbm_bytes / 1e9:.0f} GB of {machine.name}; use more GPUs"
        )
