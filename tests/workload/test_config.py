"""Workloads as cards write them: drawn, mixed, shifted, split and predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from splitgym.errors import SplitgymError
from splitgym.randomness import SPLITS, Streams
from splitgym.workload import Requests, Workload, WorkloadConfig, list_traces, write_trace

CODING = "{source: synthetic, rate_rps: 10, lengths: azure-coding, arrivals: poisson}"
CHAT = "{source: synthetic, rate_rps: 30, lengths: azure-conversation, arrivals: poisson}"
TINY = "{source: synthetic, rate_rps: 8, lengths: {law: independent, prompt: 1, output: 9}, arrivals: poisson}"
HUGE = "{source: synthetic, rate_rps: 24, lengths: {law: independent, prompt: 99, output: 3}, arrivals: poisson}"
CARDS = {
    "shipped": "{source: synthetic, rate_rps: 70, lengths: azure-conversation, arrivals: azure-conversation}",
    "own-rate": "{source: synthetic, lengths: azure-coding, arrivals: azure-coding}",
    "mixture": f"""
        source: mixture
        rate_rps: 40
        parts: [{{weight: 3, workload: {TINY}}}, {{weight: 1, workload: {HUGE}}}]""",
    "shift": f"""
        source: shift
        phases: [{{duration_s: 60, workload: {TINY}}}, {{duration_s: 30, workload: {HUGE}}}]""",
    "fading": f"""
        source: shift
        fade_s: 20
        phases: [{{duration_s: 60, workload: {CODING}}}, {{duration_s: 30, workload: {CHAT}}}]""",
    "once": f"""
        source: shift
        repeat: false
        phases: [{{duration_s: 50, workload: {TINY}}}, {{duration_s: 30, workload: {HUGE}}}]""",
}


def workload(card: str) -> Workload:
    made: Workload = TypeAdapter(WorkloadConfig).validate_python(yaml.safe_load(card))
    return made


def same(one: Requests, other: Requests) -> bool:
    names = ("arrival_s", "prompt_tokens", "output_tokens", "predicted_output_tokens")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """A trace of 1,000 requests, 2 a second, whose prompts count from 1."""
    count = np.arange(1000)
    write_trace(Requests(count * 0.5, count + 1, count % 7 + 1, np.ones(1000)), tmp_path / "numbered.csv")
    return tmp_path


@settings(max_examples=30, deadline=None)
@given(card=st.sampled_from(sorted(CARDS)), seed=st.integers(0, 10**6), few=st.integers(1, 200))
def test_limits_cut_one_and_the_same_draw(card: str, seed: int, few: int) -> None:
    made, streams = workload(CARDS[card]), Streams(seed, "train")
    long = made.draw(streams, num_requests=400)
    short = made.draw(streams, num_requests=few)
    assert len(long) == 400
    assert len(short) == few
    assert np.array_equal(long.arrival_s[:few], short.arrival_s)
    until_s = float(short.arrival_s[-1]) + 1e-9
    timed = made.draw(streams, duration_s=until_s)
    assert np.array_equal(timed.arrival_s, long.arrival_s[long.arrival_s < until_s][: len(timed)])
    assert np.array_equal(timed.output_tokens[:few], short.output_tokens)
    assert len(made.draw(streams, duration_s=until_s, num_requests=10**5)) == len(timed)


@pytest.mark.parametrize("card", CARDS)
def test_draws_repeat_and_differ_by_seed_and_split(card: str) -> None:
    made = workload(CARDS[card])
    first = made.draw(Streams(4, "val"), duration_s=1000)
    assert same(first, workload(CARDS[card]).draw(Streams(4, "val"), duration_s=1000))
    for other in (Streams(5, "val"), Streams(4, "train")):
        assert not same(first, made.draw(other, duration_s=1000))


@pytest.mark.parametrize("card", ["shipped", "own-rate", "mixture", "shift", "fading"])
@pytest.mark.parametrize("rate_rps", [None, 25.0])
def test_mean_rates(card: str, rate_rps: float | None) -> None:
    made = workload(CARDS[card])
    expected = rate_rps or made.mean_rate_rps
    drawn = [len(made.draw(Streams(seed), duration_s=900, rate_rps=rate_rps)) / 900 for seed in range(60)]
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert np.mean(drawn) == pytest.approx(expected, abs=4 * error)
    assert error < 0.08 * expected


def test_configured_mean_rates() -> None:
    rates = {name: workload(card).mean_rate_rps for name, card in CARDS.items()}
    assert rates["own-rate"] == pytest.approx(2.57, abs=0.005)  # the coding trace's
    assert rates["mixture"] == 40
    assert rates["shift"] == pytest.approx((60 * 8 + 30 * 24) / 90)
    with pytest.raises(SplitgymError, match=r"workload.rate_rps: missing for poisson arrivals"):
        _ = workload(TINY.replace("rate_rps: 8, ", "")).mean_rate_rps


def test_a_mixture_keeps_its_shares_and_predicts_without_knowing_the_part() -> None:
    drawn = workload(CARDS["mixture"]).draw(Streams(0), num_requests=20_000)
    assert (drawn.prompt_tokens == 1).mean() == pytest.approx(0.75, abs=0.012)  # four standard errors
    assert set(drawn.predicted_output_tokens[drawn.prompt_tokens == 1]) == {9.0}
    alike = CARDS["mixture"].replace("prompt: 99", "prompt: 1")
    drawn = workload(alike).draw(Streams(0), num_requests=100)
    assert drawn.predicted_output_tokens == pytest.approx(np.full(100, 0.75 * 9 + 0.25 * 3))


def test_a_shift_follows_its_phases() -> None:
    drawn = workload(CARDS["shift"]).draw(Streams(1), duration_s=900, offset=0.0)
    in_first = drawn.arrival_s % 90 < 60
    assert set(drawn.prompt_tokens[in_first]) == {1}
    assert set(drawn.prompt_tokens[~in_first]) == {99}
    later = workload(CARDS["shift"]).draw(Streams(1), duration_s=10, offset=65.0)
    assert set(later.prompt_tokens) == {99}
    # met again, a phase is another draw
    first, second = (drawn.arrival_s[(drawn.arrival_s // 90 == turn) & in_first] % 90 for turn in (0, 1))
    assert not np.array_equal(first, second)


def test_a_shift_without_repeat_stays_with_its_last_phase() -> None:
    drawn = workload(CARDS["once"]).draw(Streams(2), duration_s=500)
    assert set(drawn.prompt_tokens[drawn.arrival_s < 50]) == {1}
    assert set(drawn.prompt_tokens[drawn.arrival_s >= 50]) == {99}
    assert (drawn.arrival_s > 80).sum() / 420 == pytest.approx(24, rel=0.05)


def test_a_fade_mixes_both_phases_about_the_change() -> None:
    shift = yaml.safe_load(CARDS["shift"]) | {"fade_s": 30, "rate_rps": 300}
    drawn = workload(yaml.safe_dump(shift)).draw(Streams(3), duration_s=9000, offset=0.0)
    phase_s = drawn.arrival_s % 90
    rates = 300 / (40 / 3) * np.array([8, 24])  # of the two phases, once scaled
    # the change at 60 s is spread over 45 to 75 s; the one back, at 90 s, over 75 to 105 s
    for at_s, share in ((30, 1.0), (52.5, 0.75), (60, 0.5), (67.5, 0.25), (82.5, 0.25)):
        near = np.abs(phase_s - at_s) < 2.5
        for prompt, rate, part in ((1, rates[0], share), (99, rates[1], 1 - share)):
            seen = (drawn.prompt_tokens[near] == prompt).sum() / (100 * 5)
            assert seen == pytest.approx(rate * part, rel=0.05), (at_s, prompt)  # error below 1 %


def test_a_trace_replayed_whole_is_the_trace(numbered: Path) -> None:
    made = workload("{source: trace, path: numbered.csv, split_trace: false}")
    drawn = made.draw(Streams(0), offset=0.0, base_dir=numbered)
    assert drawn.arrival_s.tolist() == (np.arange(1000) * 0.5).tolist()
    assert drawn.prompt_tokens.tolist() == list(range(1, 1001))
    assert made.resolved(numbered).mean_rate_rps == pytest.approx(2.0)


def test_splits_share_no_request_of_a_trace(numbered: Path) -> None:
    made = workload("{source: trace, path: numbered.csv}").resolved(numbered)
    seen = {split: set(made.draw(Streams(0, split), num_requests=3000).prompt_tokens) for split in SPLITS}
    assert [len(seen[split]) for split in SPLITS] == [600, 200, 200]
    assert len(set.union(*seen.values())) == 1000
    # what a router predicts on the test stretch was learned on the training stretch
    one = np.array([1])
    assert made.predict(Streams(0), np.array([999]), one) == made.predict(Streams(0), np.array([600]), one)


def test_a_replay_scales_time_and_wraps_around(numbered: Path) -> None:
    made = workload("{source: trace, path: numbered.csv, rate_rps: 12}")
    drawn = made.draw(Streams(7, "val"), num_requests=500, base_dir=numbered)
    assert np.diff(drawn.arrival_s) == pytest.approx(np.full(499, 1 / 12))
    assert np.array_equal(drawn.prompt_tokens[200:400], drawn.prompt_tokens[:200])
    faster = made.draw(Streams(7, "val"), num_requests=500, base_dir=numbered, rate_rps=24)
    assert faster.arrival_s == pytest.approx(drawn.arrival_s / 2)
    starts = {int(made.draw(Streams(s), num_requests=1, base_dir=numbered).prompt_tokens[0]) for s in range(20)}
    assert len(starts) > 10  # episodes begin at different places
    once = made.draw(Streams(7, "val"), base_dir=numbered)
    assert len(once) in (200, 199, 201)  # one lap, begun between two requests


def test_lengths_and_arrivals_of_a_trace_apart(numbered: Path) -> None:
    card = "{source: synthetic, rate_rps: 5, lengths: {law: trace, path: numbered.csv}, arrivals: poisson}"
    drawn = workload(card).draw(Streams(0, "val"), num_requests=2000, base_dir=numbered)
    assert drawn.prompt_tokens.min() > 600
    assert drawn.prompt_tokens.max() <= 800
    card = "{source: synthetic, lengths: azure-coding, arrivals: {process: trace, path: numbered.csv}}"
    drawn = workload(card).draw(Streams(0, "val"), num_requests=50, base_dir=numbered)
    assert np.diff(drawn.arrival_s) == pytest.approx(np.full(49, 0.5))


def test_paths_inside_mixtures_and_shifts_are_found(numbered: Path) -> None:
    inner = "{source: trace, path: numbered.csv}"
    for outer in (
        f"{{source: mixture, rate_rps: 9, parts: [{{weight: 1, workload: {inner}}}]}}",
        f"{{source: shift, phases: [{{duration_s: 50, workload: {inner}}}]}}",
    ):
        assert len(workload(outer).draw(Streams(0), num_requests=20, base_dir=numbered)) == 20
    with pytest.raises(SplitgymError, match=r"numbered.csv: no such trace file"):
        workload(inner).draw(Streams(0), num_requests=1, base_dir=numbered / "elsewhere")


def test_a_trace_too_short_to_split_says_so(tmp_path: Path) -> None:
    write_trace(Requests(np.array([1.0]), np.array([5]), np.array([5]), np.ones(1)), tmp_path / "one.csv")
    made = workload("{source: trace, path: one.csv}").resolved(tmp_path)
    with pytest.raises(SplitgymError, match=r"one.csv: no request in the (train|val|test) stretch .*split_trace"):
        for split in SPLITS:
            made.draw(Streams(0, split), num_requests=3)


def test_predictions_follow_the_prompt_and_never_the_output() -> None:
    drawn = workload(CARDS["shipped"]).draw(Streams(9), num_requests=20_000)
    explained = 1 - ((drawn.output_tokens - drawn.predicted_output_tokens) ** 2).mean() / drawn.output_tokens.var()
    assert 0.5 < explained < 0.75  # the prompt tells most of a chat's output, not all
    order = np.argsort(drawn.prompt_tokens, kind="stable")
    prompt, predicted = drawn.prompt_tokens[order], drawn.predicted_output_tokens[order]
    assert (np.diff(predicted)[np.diff(prompt) == 0] == 0).all()


@pytest.mark.parametrize(
    ("card", "word"),
    [
        ("{source: synthetik}", "synthetik"),
        ("{source: synthetic, lengths: azure-coding, arrivals: poisson, rate_rps: 0}", "rate_rps"),
        ("{source: synthetic, lengths: azure-coding, arrivals: poisson, rate: 3}", "rate"),
        ("{source: mixture, rate_rps: 3, parts: []}", "parts"),
        (
            f"{{source: shift, fade_s: 9, phases: [{{duration_s: 5, workload: {TINY}}}]}}",
            "fade_s 9 is longer",
        ),
    ],
)
def test_mistakes_in_a_card(card: str, word: str) -> None:
    class Card(BaseModel):
        workload: WorkloadConfig

    with pytest.raises(ValidationError, match=word):
        Card.model_validate({"workload": yaml.safe_load(card)})


def test_limits_that_make_no_sense() -> None:
    made = workload(CARDS["shipped"])
    with pytest.raises(ValueError, match="no end"):
        made.draw(Streams(0))
    with pytest.raises(ValueError, match="num_requests must be positive"):
        made.draw(Streams(0), num_requests=0)


def test_shipped_workloads_are_listed_in_one_line_each() -> None:
    listed = list_traces()
    assert list(listed) == ["azure-coding", "azure-conversation"]
    assert all(0 < len(line) < 110 and "\n" not in line for line in listed.values())
