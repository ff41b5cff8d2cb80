"""Classes of requests: how they are drawn, what each is promised, and who keeps it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from splitgym.cards import Card, load_card
from splitgym.errors import SplitgymError
from splitgym.metrics import scorecard, summary
from splitgym.policies import make_policy
from splitgym.sim import ReferenceEngine, Scenario
from splitgym.sim.cluster import RequestClass, Slo, SloSeconds
from splitgym.sim.run import run
from splitgym.view import Decision
from splitgym.workload import Requests
from tests.sim.build import cluster, requests

QUICK = "{name: quick, share: 3, slo_s: {ttft: 0.5, tbt: 0.05, e2e: 20}}"
BULK = "{name: bulk, share: 1, slo: {ttft: [10, 30, 60], tbt: [2, 4, 8]}}"
SHORT = "{name: short, share: 1, slo_s: {ttft: 1, tbt: 1}, lengths: {law: independent, prompt: 7, output: 3}}"


def card_of(folder: Path, *classes: str) -> Card:
    path = folder / "mine.yaml"
    path.write_text(
        "description: a card\n"
        "cluster: {model: llama2-70b, machines: [{role: mixed, hardware: h100-80gb, count: 2}]}\n"
        "workload: {source: synthetic, arrivals: poisson, lengths: azure-conversation, rate_rps: 4}\n"
        "episode: {warmup_s: 5, horizon_s: 60}\n" + (f"classes: [{', '.join(classes)}]\n" if classes else "")
    )
    return load_card(path)


# --- drawing -----------------------------------------------------------------------------------------------------


def test_shares_and_the_rest_of_the_requests(tmp_path: Path) -> None:
    plain = card_of(tmp_path).scenario(1, horizon_s=2000.0).requests
    found = card_of(tmp_path, QUICK, BULK).scenario(1, horizon_s=2000.0).requests
    assert set(plain.slo_class) == {0}
    share = (found.slo_class == 0).mean()
    assert share == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / len(found)))
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "predicted_output_tokens"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))
    shorter = card_of(tmp_path, QUICK, BULK).scenario(1, horizon_s=100.0).requests
    np.testing.assert_array_equal(shorter.slo_class, found.slo_class[: len(shorter)])


def test_a_class_may_have_its_own_lengths(tmp_path: Path) -> None:
    plain = card_of(tmp_path).scenario(2).requests
    found = card_of(tmp_path, BULK, SHORT).scenario(2).requests
    short = found.slo_class == 1
    assert 0 < short.sum() < len(found)
    assert set(found.prompt_tokens[short]) == {7} and set(found.output_tokens[short]) == {3}
    assert set(found.predicted_output_tokens[short]) == {3.0}  # a router knows the class
    np.testing.assert_array_equal(found.prompt_tokens[~short], plain.prompt_tokens[~short])


def test_a_trace_keeps_its_lengths(tmp_path: Path) -> None:
    count = np.arange(40)
    trace = Requests(count * 0.1, count + 1, count + 2, count + 2.0)
    found = card_of(tmp_path, BULK, SHORT).scenario(0, requests=trace).requests
    np.testing.assert_array_equal(found.prompt_tokens, trace.prompt_tokens)
    assert set(found.slo_class) == {0, 1}


@pytest.mark.parametrize(
    ("classes", "line"),
    [
        (("{name: a, share: 1}",), "classes[0]: give either slo, in slowdowns, or slo_s, in seconds"),
        ((QUICK, QUICK), "classes: two are called 'quick'; give each a name of its own"),
        (("{name: A b, share: 1, slo: {}}",), "classes[0].name:"),
        (("{name: a, share: 0, slo: {}}",), "classes[0].share:"),
        (("{name: a, share: 1, slo_s: {ttft: 1}}",), "classes[0].slo_s.tbt: missing; add it"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, classes: tuple[str, ...], line: str) -> None:
    with pytest.raises(SplitgymError) as caught:
        card_of(tmp_path, *classes)
    assert line in str(caught.value)


# --- promises ----------------------------------------------------------------------------------------------------

# The baseline takes 1 s for a prompt and 0.1 s for a token.
PROMISED = (
    RequestClass("quick", SloSeconds(1.5, 0.2, 2.6)),
    RequestClass("bulk", Slo((1, 4, 9), (1, 3, 9), (1, 1, 1))),
)


def scenario_of(*rows: tuple[float, int, int], slo_class: list[int]) -> Scenario:
    arrivals = dataclasses.replace(requests(*rows), slo_class=np.array(slo_class, np.int64))
    return Scenario(dataclasses.replace(cluster("m"), classes=PROMISED), arrivals, tick_s=None)


def test_the_view_says_what_is_promised() -> None:
    engine = ReferenceEngine(scenario_of((0.0, 10, 5), (0.0, 10, 5), slo_class=[0, 1]))
    seen = []
    while (view := engine.advance()) is not None:
        seen.append((view.of_request("ttft_slo_s"), view.of_request("tbt_slo_s")))
        engine.decide(Decision(0, 0))
    assert seen == [(1.5, 0.2), (pytest.approx(4.0), pytest.approx(0.3))]


def test_deadlines_are_the_classs() -> None:
    """Two prompts, one after the other: first tokens after 1 s and 2 s, of 1.5 s promised to one, 4 s to the other."""
    missed = []
    for slo_class in ([0, 0], [0, 1], [1, 1]):
        scenario = scenario_of((0.0, 1500, 1), (0.0, 1500, 1), slo_class=slo_class)
        missed.append(run(scenario, make_policy("round-robin"), engine="reference").meters.ttft_missed)
    assert missed == [1, 0, 0]


def test_figures_of_each_class() -> None:
    scenario = scenario_of((0.0, 1500, 1), (0.0, 1500, 1), (0.0, 1500, 1), slo_class=[0, 0, 1])
    result = run(scenario, make_policy("round-robin"), engine="reference")
    content = summary(result.rows, scenario, result.meters)
    assert list(content["classes"]) == ["quick", "bulk"]
    quick, bulk = content["classes"].values()
    assert (quick["requests"], quick["kept"], quick["ttft_s"]["p50"]) == (2, 0.5, pytest.approx(1.5))
    assert (bulk["requests"], bulk["kept"], bulk["ttft_s"]["p50"]) == (1, 1.0, pytest.approx(3.0))  # 4 s promised
    assert content["goodput_rps"] == pytest.approx(quick["goodput_rps"] + bulk["goodput_rps"])
    card = scorecard(result.rows, scenario, result.meters)
    assert (card["class_quick_kept"], card["class_bulk_kept"]) == (0.5, 1.0)
    assert card["class_bulk_ttft_p90_s"] == bulk["ttft_s"]["p90"]
    assert result.rows.to_arrow()["slo_class"].to_pylist() == ["quick", "quick", "bulk"]


def test_e2e_may_be_promised_too() -> None:
    """TTFT 1 s and nine gaps of 0.1 s keep 1.5 s and 0.2 s; sixteen gaps end after the 2.6 s promised."""
    kept = []
    for output_tokens in (10, 18):
        scenario = scenario_of((0.0, 10, output_tokens), slo_class=[0])
        result = run(scenario, make_policy("round-robin"), engine="reference")
        kept.append(summary(result.rows, scenario, result.meters)["classes"]["quick"]["kept"])
    assert kept == [1.0, 0.0]


def test_without_classes_nothing_is_said_of_them(tmp_path: Path) -> None:
    scenario = card_of(tmp_path).scenario(0)
    result = run(scenario, make_policy("lmetric"), engine="reference")
    assert "classes" not in summary(result.rows, scenario, result.meters)
    assert not any(name.startswith("class_") for name in scorecard(result.rows, scenario, result.meters))
    assert "slo_class" not in result.rows.to_arrow().column_names
