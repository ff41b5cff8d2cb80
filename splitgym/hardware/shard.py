"""One rank's share of a tensor-parallel model, with random weights, to be timed: torch's kernels, nobody's engine.

What a rank does between two all-reduces, written as an engine would launch it. Nothing is trained or loaded; the
numbers it computes mean nothing, their shapes and the bytes they move do. All-reduces are not here: one GPU.
Positions are rotary whatever the model. This module imports torch: import it only where it is wanted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from splitgym.hardware.measure import Mix, Work
from splitgym.hardware.widths import Widths

COLD_BYTES = 2**28
"""Attention is timed over at least so many bytes of cache in turn, so that none of it stays in a GPU's own cache."""


class Shard:
    """The rank's weights and a pool of keys and values, on one device.

    Args:
        widths: sizes.
        device: ``cuda``, in bfloat16, or ``cpu``, in float32 (for tests).
        layers: layers to hold; the whole model's, or as many as fit.
        cache_tokens: keys and values the pool holds, of one layer.
    """

    def __init__(self, widths: Widths, device: str, layers: int, cache_tokens: int) -> None:
        self.widths, self.layers, self.cache_tokens = widths, layers, cache_tokens
        self._device, self._dtype = device, torch.bfloat16 if device == "cuda" else torch.float32
        hidden = widths.shape.hidden
        self._weights = {name: self._random(layers, *size) for name, size in widths.matrices.items()}
        self._table = self._random(widths.vocabulary, hidden)
        self._head = self._random(widths.vocabulary, hidden)
        self._gain = self._random(hidden)
        self._head_gain = self._random(widths.spec.head_dim)
        self._keys = self._random(cache_tokens * widths.cache_elements // 2)
        self._values = self._random(cache_tokens * widths.cache_elements // 2)
        self._operators: dict[str, tuple[int, Callable[[Tensor, int], Tensor]]] = {
            "layernorm": (hidden, lambda x, _: self._norm(x, x)[0]),
            **{name: (size[1], self._product(name)) for name, size in widths.matrices.items()},
            "rotary_emb": (widths.matrices["qkv_proj"][0], lambda x, _: self._rotate(x)),
            "act_fn": (widths.matrices["gate_up_proj"][0], lambda x, _: self._activate(x)),
            **({"qk_norm": (widths.matrices["qkv_proj"][0], lambda x, _: self._norm_heads(x))} if self._norms else {}),
        }

    @property
    def _norms(self) -> bool:
        return self.widths.shape.query_key_norm

    @property
    def layer_operators(self) -> tuple[str, ...]:
        """What ``dense`` can time once for each layer; ``layernorm`` runs twice in one."""
        return tuple(self._operators)

    def dense(self, name: str, tokens: int) -> Work:
        """An operator of a layer over ``tokens`` tokens, once for each layer held."""
        width, operator = self._operators[name]
        x = self._random(tokens, width)

        def run() -> None:
            for layer in range(self.layers):
                operator(x, layer)

        return Work(run, self.layers)

    def once(self, name: str, rows: int) -> Work:
        """``embedding`` or ``final_layernorm`` over tokens, ``lm_head`` or ``sampler`` over sequences."""
        ids = torch.randint(self.widths.vocabulary, (rows,), device=self._device)
        x, logits = self._random(rows, self.widths.shape.hidden), self._random(rows, self.widths.vocabulary)
        runs: dict[str, Callable[[], object]] = {
            "embedding": lambda: self._table[ids],
            "final_layernorm": lambda: self._norm(x, x),
            "lm_head": lambda: x @ self._head.T,
            "sampler": lambda: logits.argmax(dim=-1),
        }
        operator = runs[name]

        def run() -> None:
            operator()

        return Work(run, 1)

    def attention(self, mix: Mix) -> Work:
        """Attention of one layer, cache writes included, over as many parts of the pool as keep it cold."""
        qkv = self._random(mix.tokens, self.widths.matrices["qkv_proj"][0])
        size = mix.cached_tokens * self.widths.cache_elements * self._keys.element_size()
        copies = max(1, min(self.layers, -(-COLD_BYTES // size), self.cache_tokens // mix.cached_tokens))

        def run() -> None:
            for part in range(copies):
                self._attend(qkv, mix, part)

        return Work(run, copies)

    def iteration(self, mix: Mix) -> Work:
        """All layers held and the head, each layer's output the next one's input."""
        ids = torch.randint(self.widths.vocabulary, (mix.tokens,), device=self._device)

        def run() -> None:
            self.logits(ids, mix)

        return Work(run, 1)

    def logits(self, ids: Tensor, mix: Mix) -> Tensor:
        """The head's output for tokens ``ids`` (tokens,): (sequences, vocabulary of this rank)."""
        x = self._table[ids]
        residual = torch.zeros_like(x)
        parts = max(1, self.cache_tokens // mix.cached_tokens)
        for layer in range(self.layers):
            x, residual = self._norm(x, residual)
            qkv = self._product("qkv_proj")(x, layer)
            qkv = self._rotate(self._norm_heads(qkv) if self._norms else qkv)
            x = self._product("o_proj")(self._attend(qkv, mix, layer % parts), layer)
            x, residual = self._norm(x, residual)
            x = self._product("down_proj")(self._activate(self._product("gate_up_proj")(x, layer)), layer)
        x, _ = self._norm(x[-mix.sequences :], residual[-mix.sequences :])
        return x @ self._head.T

    def _random(self, *size: int) -> Tensor:
        return torch.randn(size, device=self._device, dtype=self._dtype).div_(size[-1] ** 0.5)

    def _product(self, name: str) -> Callable[[Tensor, int], Tensor]:
        weights = self._weights[name]
        return lambda x, layer: x @ weights[layer].T

    def _norm(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return functional.rms_norm(total, (total.shape[-1],), self._gain), total

    def _norm_heads(self, qkv: Tensor) -> Tensor:
        head_dim = self.widths.spec.head_dim
        split = (self.widths.heads + self.widths.kv_heads) * head_dim
        heads = torch.unflatten(qkv[:, :split], -1, (-1, head_dim))
        normed = functional.rms_norm(heads, (head_dim,), self._head_gain)
        return torch.cat([normed.flatten(-2), qkv[:, split:]], dim=-1)

    def _rotate(self, qkv: Tensor) -> Tensor:
        """Queries and keys turned by their position, here the place in the batch."""
        head_dim = self.widths.spec.head_dim
        split = (self.widths.heads + self.widths.kv_heads) * head_dim
        angles = torch.arange(len(qkv), device=qkv.device)[:, None, None] / 10_000 ** torch.linspace(
            0, 1, head_dim // 2, device=qkv.device
        )
        cos, sin = angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype)
        left, right = torch.unflatten(qkv[:, :split], -1, (-1, 2, head_dim // 2)).unbind(dim=-2)
        turned = torch.stack([left * cos - right * sin, right * cos + left * sin], dim=-2)
        return torch.cat([turned.flatten(1), qkv[:, split:]], dim=-1)

    def _activate(self, x: Tensor) -> Tensor:
        if not self.widths.shape.gated:
            return functional.gelu(x)
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def _attend(self, qkv: Tensor, mix: Mix, part: int) -> Tensor:
        """Write this iteration's keys and values into a part of the pool and attend: (tokens, heads · head_dim).

        Queries that share a KV head are a dimension of their own, so that no key or value is copied for them.
        """
        kv_heads, head_dim = self.widths.kv_heads, self.widths.spec.head_dim
        group = self.widths.heads // kv_heads
        sizes = [self.widths.heads, kv_heads, kv_heads]
        queries, *new = torch.split(torch.unflatten(qkv, -1, (-1, head_dim)), sizes, dim=1)
        queries = torch.unflatten(queries, 1, (kv_heads, group))  # (tokens, kv_heads, group, head_dim)
        chunk, length = mix.prefill_chunk, mix.prefill_chunk + mix.kv_prefill
        start = part * mix.cached_tokens
        outputs = []
        if chunk:
            cached = [self._cached(pool, start, (kv_heads, length, head_dim)) for pool in (self._keys, self._values)]
            for place, tokens in zip(cached, new, strict=True):
                place[:, -chunk:] = tokens[:chunk].transpose(0, 1)
            keys, values = (place[:, None].expand(-1, group, -1, -1) for place in cached)
            mask = causal_lower_right(chunk, length)
            output = functional.scaled_dot_product_attention(
                queries[:chunk].permute(1, 2, 0, 3), keys, values, attn_mask=mask
            )
            outputs.append(output.permute(2, 0, 1, 3).flatten(1))
        if mix.n_decode:
            shape = (mix.n_decode, kv_heads, mix.kv_decode, head_dim)
            cached = [self._cached(pool, start + length, shape) for pool in (self._keys, self._values)]
            for place, tokens in zip(cached, new, strict=True):
                place[:, :, -1] = tokens[chunk:]
            keys, values = cached
            outputs.append(functional.scaled_dot_product_attention(queries[chunk:], keys, values).flatten(1))
        return torch.cat(outputs)

    def _cached(self, pool: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
        """The keys or values from token ``start`` of the pool on, as ``shape``."""
        first = start * self.widths.cache_elements // 2
        size = torch.Size(shape).numel()
        return pool[first : first + size].view(shape)
