"""A small layer profile, made from a law that is known."""

from __future__ import annotations

import itertools
from pathlib import Path

from splitgym.hardware.layer_profile import BY_SEQUENCE, ONCE, TIMES_IN_A_LAYER

META = "model: meta-llama/Llama-3.1-8B\nhardware: RTX4090\ntp_degrees: [1]\nvllm_version: 0.19.0\n"
SETTINGS = """{"engine_kwargs": {"tensor_parallel_size": 1, "max_num_seqs": 128, "max_num_batched_tokens": 2048},
 "kv_cache": {"num_gpu_blocks": 101, "block_size": 16, "enable_prefix_caching": false},
 "resolved_config": {"scheduler_config": {"async_scheduling": true}}}"""

DENSE_US, DENSE_PER_TOKEN_US = 10.0, 0.05  # each dense operation
SEQUENCE_US = 7.0  # each operation by sequence


def attention_us(chunk: int, prefill: int, decodes: int, context: int) -> float:
    """One layer's attention: linear, decodes dearer beside a prompt."""
    if chunk == 0:
        return 5 + 1e-3 * decodes * context
    return 5 + 2e-5 * chunk * (prefill + chunk / 2) + 3e-3 * prefill + 2e-3 * decodes * context + 0.2 * decodes


def write_folder(folder: Path) -> Path:
    """Write the four files, and no run."""
    folder.mkdir(exist_ok=True)
    chunks, contexts, counts = (0, 16, 64, 256, 1024), (0, 128, 1024, 4096), (0, 1, 4, 16, 64)
    rows = ["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"]
    for chunk, prefill, decodes, context in itertools.product(chunks, contexts, counts, contexts):
        if (chunk or decodes) and (chunk or not prefill) and bool(decodes) == bool(context):
            rows.append(f"{chunk},{prefill},{decodes},{context},{attention_us(chunk, prefill, decodes, context)}")
    (folder / "attention.csv").write_text("\n".join(rows) + "\n")
    dense = [
        f"{layer},{tokens},{DENSE_US + DENSE_PER_TOKEN_US * tokens}"
        for layer in (*TIMES_IN_A_LAYER, *ONCE)
        for tokens in (1, 16, 64, 256, 1024)
    ]
    (folder / "dense.csv").write_text("\n".join(("layer,tokens,time_us", *dense)) + "\n")
    by_sequence = [f"{layer},{sequences},{SEQUENCE_US}" for layer in BY_SEQUENCE for sequences in (1, 64)]
    (folder / "per_sequence.csv").write_text("\n".join(("layer,sequences,time_us", *by_sequence)) + "\n")
    (folder / "profile_meta.yaml").write_text(META)
    return folder
