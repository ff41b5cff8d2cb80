"""Operator tables of a GPU that never was, small and noisy, in the layout of the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

FLOPS, BYTES_PER_S, FLOOR_S = 8e14, 3.0e12, 5e-6
NOISE = 0.2


def write_tables(folder: Path, gpu: str = "h100_sxm", seed: int = 0) -> Path:
    """GEMM, all-reduce and attention by a roofline, each time up to a fifth off."""
    rng = np.random.default_rng(seed)

    def write(operator: str, rows: list[dict[str, object]], seconds: np.ndarray) -> None:
        noisy = 1000 * seconds * rng.uniform(1 - NOISE, 1 + NOISE, len(seconds))
        table = pa.Table.from_pylist([{**row, "latency_ms": ms} for row, ms in zip(rows, noisy.tolist(), strict=True)])
        pq.write_table(table, folder / f"{gpu}.{operator}.parquet")

    sizes = (256, 1024, 4096, 16384)
    gemm = [
        {"gemm_dtype": dtype, "m": m, "n": n, "k": k}
        for dtype in ("bfloat16", "fp8")
        for m in (1, 16, 128, 1024, 8192)
        for n in sizes
        for k in sizes
        if (n, k) != (16384, 16384)
    ]
    m, n, k = (np.array([row[name] for row in gemm], dtype=float) for name in "mnk")
    eight = np.array([row["gemm_dtype"] == "fp8" for row in gemm])
    write("gemm", gemm, np.maximum(2 * m * n * k / FLOPS, 2 * n * k / BYTES_PER_S) / (1 + eight) + FLOOR_S)

    reduce = [
        {"allreduce_dtype": "bfloat16", "backend": backend, "num_gpus": gpus, "message_size": 2**power}
        for backend in ("vllm_eager", "vllm_graph")
        for gpus in (2, 4)
        for power in range(7, 25, 3)
    ]
    size = np.array([row["message_size"] for row in reduce], dtype=float)
    eager = np.array([row["backend"] == "vllm_eager" for row in reduce])
    write("allreduce", reduce, FLOOR_S * (1 + 9 * eager) + 4 * size / 2e11)

    def attention(lengths: tuple[int, ...], step: bool) -> list[dict[str, object]]:
        return [
            {
                "num_heads": heads,
                "num_key_value_heads": kv_heads,
                "head_dim": 128,
                "batch_size": batch,
                "isl": 1 if step else tokens,
                "step": tokens - 1 if step else 0,
            }
            for heads, kv_heads in ((8, 2), (16, 4), (4, 4))
            for batch in (1, 8, 64)
            for tokens in lengths
            if batch * tokens <= 2**17
        ]

    prefill = attention((1, 64, 512, 4096, 16384), step=False)
    decode = attention((2, 64, 512, 4096, 16384), step=True)
    for operator, rows in (("prefill_attention", prefill), ("decode_attention", decode)):
        heads, kv, batch, isl, step = (
            np.array([row[name] for row in rows], dtype=float)
            for name in ("num_heads", "num_key_value_heads", "batch_size", "isl", "step")
        )
        read_s = 4 * 128 * kv * batch * (isl + step) / BYTES_PER_S
        computed_s = 2 * 128 * heads * batch * isl * (isl + 2 * step) / FLOPS
        write(operator, rows, np.maximum(read_s, computed_s) + FLOOR_S)
    return folder


@pytest.fixture(scope="session")
def operator_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(tmp_path_factory.mktemp("operators"))
