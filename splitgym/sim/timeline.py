"""A run as Chrome trace JSON: a track per machine, KV transfers as arrows, queues and KV-cache as counters.

Open the file at https://ui.perfetto.dev or in chrome://tracing. Format: the Trace Event Format of the
Chromium project; times are in microseconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from splitgym.sim.cluster import Cluster
from splitgym.sim.recorder import Recorder
from splitgym.sim.rows import RequestRows

FloatArray = npt.NDArray[np.float64]
Entry = dict[str, Any]

_MICROSECONDS = 1e6
_MACHINES, _CLUSTER = 1, 2  # the two groups of tracks


def timeline(recorder: Recorder | None, rows: RequestRows, machine_names: list[str]) -> dict[str, Any]:
    """The content of ``timeline.json``.

    Args:
        recorder: what the machines did; None where nobody recorded it: then a machine's track has its prompt
            phases and nothing else.
        rows: the run's requests.
        machine_names: (num_machines,) names of the tracks.

    Returns:
        ``traceEvents``: metadata, complete slices ("X") with the number of iterations, prompts and decodes,
        flows ("s", "f") for transfers, and counters ("C") of requests waiting, decoding and in transfer.
    """
    entries = _names(machine_names)
    entries += _slices(recorder) if recorder is not None else _prompt_slices(rows)
    entries += _transfers(recorder) if recorder is not None else []
    entries += _counters(rows)
    return {"traceEvents": entries, "displayTimeUnit": "ms"}


def machine_names(cluster: Cluster) -> list[str]:
    """``machine 03 prompt h100-80gb`` for each machine, by the role it starts in."""
    return [
        f"machine {number:02d} {machine.role_name} {machine.profile.hardware}"
        for number, machine in enumerate(cluster.machines)
    ]


def write_timeline(content: dict[str, Any], path: Path) -> None:
    """Write ``timeline.json``, one event a line."""
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in content["traceEvents"])
    path.write_text(f'{{"displayTimeUnit":"{content["displayTimeUnit"]}","traceEvents":[\n{lines}\n]}}\n', "utf-8")


def _names(machines: list[str]) -> list[Entry]:
    def name(kind: str, process: int, thread: int, text: str) -> Entry:
        return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": text}}

    entries = [name("process_name", _MACHINES, 0, "machines"), name("process_name", _CLUSTER, 0, "cluster")]
    for number, text in enumerate(machines):
        entries.append(name("thread_name", _MACHINES, number + 1, text))
        order: Entry = {"ph": "M", "name": "thread_sort_index", "pid": _MACHINES, "tid": number + 1}
        entries.append(order | {"args": {"sort_index": number}})
    return entries


def _slice(machine: int, activity: str, start_s: float, end_s: float, args: dict[str, Any]) -> Entry:
    start_us, end_us = start_s * _MICROSECONDS, end_s * _MICROSECONDS
    place: Entry = {"ph": "X", "pid": _MACHINES, "tid": machine + 1, "name": activity}
    return place | {"ts": start_us, "dur": end_us - start_us, "args": args}


def _slices(recorder: Recorder) -> list[Entry]:
    return [
        _slice(
            piece.machine,
            piece.activity,
            piece.start_s,
            piece.end_s,
            {"iterations": piece.iterations, "prompts": piece.prompts, "max_decodes": piece.max_decodes},
        )
        for piece in recorder.slices()
    ]


def _prompt_slices(rows: RequestRows) -> list[Entry]:
    """One slice for each batch of prompts: requests of one machine with equal start and end."""
    done = ~np.isnan(rows.first_token_s) & (rows.prompt_machine >= 0)
    columns = (rows.prompt_machine[done], rows.prompt_start_s[done], rows.first_token_s[done])
    batches, counts = np.unique(np.stack(columns), axis=1, return_counts=True)
    return [
        _slice(int(machine), "prompt phase", start_s, end_s, {"prompts": int(count)})
        for (machine, start_s, end_s), count in zip(batches.T.tolist(), counts, strict=True)
    ]


def _transfers(recorder: Recorder) -> list[Entry]:
    entries: list[Entry] = []
    for send in recorder.sends:
        flow: Entry = {"cat": "kv", "name": "KV transfer", "id": send.request, "pid": _MACHINES}
        # a microsecond earlier it is still within the prompt phase's slice, from which the arrow is to come
        start_us, end_us = send.start_s * _MICROSECONDS - 1, send.end_s * _MICROSECONDS
        entries.append(flow | {"ph": "s", "tid": send.source + 1, "ts": start_us})
        entries.append(flow | {"ph": "f", "bp": "e", "tid": send.destination + 1, "ts": end_us})
    return entries


def _counters(rows: RequestRows) -> list[Entry]:
    """Requests in each phase, and the KV-cache of their prompts, whenever one enters or leaves.

    A transfer before the first token is part of the wait for it.
    """
    first_s, finish_s = rows.first_token_s, rows.finish_s
    sent_s = np.where(np.isnan(rows.transfer_end_s), first_s, np.maximum(first_s, rows.transfer_end_s))
    each, prompt_tokens = np.ones(len(rows)), rows.prompt_tokens.astype(np.float64)
    return [
        *_counter("waiting for the first token", rows.arrival_s, first_s, each),
        *_counter("in transfer", first_s, sent_s, each),
        *_counter("decoding", sent_s, finish_s, each),
        *_counter("prompt tokens in KV-caches", first_s, finish_s, prompt_tokens),
    ]


def _counter(name: str, enter_s: FloatArray, leave_s: FloatArray, amount: FloatArray) -> list[Entry]:
    times_s = np.concatenate([enter_s, leave_s])
    steps = np.concatenate([amount, -amount])
    known = ~np.isnan(times_s)
    moments_s, place = np.unique(times_s[known], return_inverse=True)
    level = np.cumsum(np.bincount(place, steps[known], len(moments_s)))
    counter: Entry = {"ph": "C", "pid": _CLUSTER, "name": name}
    return [
        counter | {"ts": time_s * _MICROSECONDS, "args": {"now": value}}
        for time_s, value in zip(moments_s.tolist(), level.tolist(), strict=True)
    ]
