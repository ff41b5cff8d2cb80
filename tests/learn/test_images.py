from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from splitgym.cards import load_card
from splitgym.learn.watch import TIMELINE, Watched, watch
from splitgym.policies import make_policy
from splitgym.sim.recorder import Slice
from splitgym.sim.run import run

images = pytest.importorskip("splitgym.learn.images", exc_type=ImportError)


@pytest.fixture(scope="module")
def watched(quick_card: Path) -> Watched:
    return watch(load_card(quick_card).scenario(0), make_policy("splitwise"), warmup_policy=make_policy("jsq-tokens"))


def test_watching_changes_nothing(quick_card: Path, watched: Watched):
    scenario = load_card(quick_card).scenario(0)
    plain = run(scenario, make_policy("splitwise"), warmup_policy=make_policy("jsq-tokens"))
    assert np.array_equal(plain.rows.finish_s, watched.rows.finish_s)
    assert set(watched.timeline) == set(TIMELINE)
    assert all(len(values) == len(watched.sample_s) for values in watched.timeline.values())


def test_decodes_are_those_of_the_rows(watched: Watched):
    rows = watched.rows
    for machine in (2, 3):
        here = rows.token_machine == machine
        for time_s in (3.0, 7.5, 11.0):
            expected = np.sum(here & (rows.transfer_end_s <= time_s) & (rows.finish_s > time_s))
            assert watched.decodes(machine, np.array([time_s]))[0] == expected
    assert watched.decodes(0, np.array([1e9]))[0] == 0


def test_a_gantt_chart_of_known_slices(watched: Watched):
    slices = (
        Slice(0, 0.0, 3.0, "prompt phase", 1, 1, 0),
        Slice(0, 3.0, 4.0, "switching", 0, 0, 0),
        Slice(2, 5.0, 30.0, "token phase", 9, 0, 4),
        Slice(3, 20.0, 30.0, "token phase", 9, 0, 4),  # outside the window
    )
    figure = images.gantt(dataclasses.replace(watched, slices=slices), "four", window_s=(0.0, 10.0))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["prompt", "token", "30 %", "0 %", "50 %", "0 %", "busy"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["prompt phase", "switching", "token phase, 1 request"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [f"h100  {m}" for m in range(4)]


def test_a_gantt_chart_of_nothing(watched: Watched):
    empty = images.gantt(dataclasses.replace(watched, slices=()), "nothing")
    assert images.png(empty)[0].startswith(b"\x89PNG")


def test_latency_distributions(watched: Watched):
    both = {"splitwise": watched, "lmetric": watched}
    figure = images.latency_cdfs(both, "two policies")
    assert [axes.get_xlabel() for axes in figure.axes] == ["TTFT, s", "TBT, ms", "E2E, s"]
    values = figure.axes[0].get_lines()[0].get_xdata()
    assert np.array_equal(values, np.sort(watched.ttft_s))
    assert figure.axes[0].get_lines()[0].get_ydata()[-1] == 100
    highlighted = images.latency_cdfs(both, "one of two", highlight="lmetric")
    assert [text.get_text() for text in highlighted.legends[0].get_texts()] == ["lmetric", "the others"]


def test_equal_pictures_are_equal_files(watched: Watched):
    first, second = (images.png(images.gantt(watched, "the same")) for _ in range(2))
    assert first == second
