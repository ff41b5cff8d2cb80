"""The timeline: what a viewer needs to draw it, and that it tells what happened."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from splitgym.cards import load_card
from splitgym.policies import make_policy
from splitgym.sim.run import RunResult, run
from splitgym.sim.timeline import machine_names, timeline, write_timeline


@pytest.fixture(scope="module")
def result() -> RunResult:
    scenario = load_card("Quickstart").scenario(0, horizon_s=25.0)
    return run(scenario, make_policy("lmetric"), record=True)


def test_one_track_for_each_machine(result: RunResult) -> None:
    names = machine_names(result.scenario.cluster)
    assert names[2] == "machine 02 prompt a100-80gb"
    entries = timeline(result.recorder, result.rows, names)["traceEvents"]
    tracks = {entry["tid"]: entry["args"]["name"] for entry in entries if entry["name"] == "thread_name"}
    assert list(tracks.values()) == names
    assert {entry["tid"] for entry in entries if entry["ph"] == "X"} <= set(tracks)


def test_slices_of_a_machine_do_not_overlap(result: RunResult) -> None:
    entries = timeline(result.recorder, result.rows, machine_names(result.scenario.cluster))["traceEvents"]
    for track in range(1, result.scenario.cluster.num_machines + 1):
        slices = [(e["ts"], e["ts"] + e["dur"]) for e in entries if e["ph"] == "X" and e["tid"] == track]
        starts, ends = np.array(sorted(slices)).T
        assert np.all(starts[1:] >= ends[:-1] - 1e-3)  # µs; start + duration rounds


def test_every_transfer_has_two_ends_and_counters_return_to_zero(result: RunResult) -> None:
    entries = timeline(result.recorder, result.rows, machine_names(result.scenario.cluster))["traceEvents"]
    sent = int(np.sum(~np.isnan(result.rows.transfer_end_s)))
    kinds = Counter(entry["ph"] for entry in entries)
    assert kinds["s"] == kinds["f"] == sent > 0
    last = {entry["name"]: entry["args"]["now"] for entry in entries if entry["ph"] == "C"}
    assert set(last.values()) == {0.0}


def test_without_a_recorder_there_are_prompt_phases(result: RunResult) -> None:
    entries = timeline(None, result.rows, machine_names(result.scenario.cluster))["traceEvents"]
    slices = [entry for entry in entries if entry["ph"] == "X"]
    assert sum(entry["args"]["prompts"] for entry in slices) == len(result.rows)


def test_the_file_is_json(result: RunResult, tmp_path: Path) -> None:
    content = timeline(result.recorder, result.rows, machine_names(result.scenario.cluster))
    write_timeline(content, tmp_path / "timeline.json")
    assert json.loads((tmp_path / "timeline.json").read_text("utf-8")) == content
