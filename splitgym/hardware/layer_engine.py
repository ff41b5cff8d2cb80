"""The engine behind a layer profile: settings of a vLLM run, from the ``run_meta.json`` beside the tables."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from splitgym.hardware.models import Count
from splitgym.yaml_file import read_model


class _Arguments(BaseModel):
    tensor_parallel_size: Count = 1
    max_num_seqs: Count
    max_num_batched_tokens: Count


class _KvCache(BaseModel):
    num_gpu_blocks: Count
    block_size: Count
    enable_prefix_caching: bool = True


class _Scheduler(BaseModel):
    async_scheduling: bool = True


class _Resolved(BaseModel):
    scheduler_config: _Scheduler = _Scheduler()


class EngineSettings(BaseModel):
    """``run_meta.json``, as far as it is needed; what it does not say is as vLLM 0.19 has it by default."""

    engine_kwargs: _Arguments
    kv_cache: _KvCache | None = None
    resolved_config: _Resolved = _Resolved()

    @property
    def kv_capacity_tokens(self) -> int | None:
        """KV tokens in whole blocks, one block kept by the engine for itself; None where the file does not say."""
        return None if self.kv_cache is None else (self.kv_cache.num_gpu_blocks - 1) * self.kv_cache.block_size


def read_engine_settings(folder: Path) -> EngineSettings | None:
    """The settings of the run in ``folder``; None if there was no run.

    Raises:
        SplitgymError: if the file is malformed.
    """
    path = folder / "run_meta.json"
    return read_model(path, EngineSettings) if path.is_file() else None
