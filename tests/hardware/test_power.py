"""Power by phase and load, and what a cap does: monotone, in and out of range."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym.hardware import PowerLaw, iteration_s, list_profiles, load_profile
from splitgym.hardware.latency import power_w
from splitgym.hardware.measurements import read_runs
from splitgym.hardware.power_fit import prompt_power_fractions

LOADS = st.integers(0, 40_000)
DECODES = st.integers(0, 600)


def some_profile() -> st.SearchStrategy[tuple[str, str, int]]:
    return st.sampled_from(list_profiles())


@given(key=some_profile(), prompt=LOADS, decodes=DECODES, more=st.integers(1, 5_000), more_decodes=DECODES)
@settings(deadline=None, max_examples=200)
def test_power_never_falls_with_load_and_is_between_idling_and_the_most(key, prompt, decodes, more, more_decodes):
    power = load_profile(*key).power
    row = power.packed_with(load_profile(*key).law)
    here = power_w(row, prompt, decodes)
    assert power.idle_w <= here <= power_w(row, prompt + more, decodes + more_decodes) <= power.most_w


@given(
    key=some_profile(),
    prompt=LOADS,
    decodes=DECODES,
    context=st.integers(0, 10**6),
    cap=st.floats(0.02, 1.2),
    lower=st.floats(0.3, 1.0),
)
@settings(deadline=None, max_examples=200)
def test_a_lower_cap_never_shortens_an_iteration_nor_raises_its_power_or_energy(
    key, prompt, decodes, context, cap, lower
):
    """``cap`` as a share of what lies between idling and the most, ``lower`` of that share."""
    if prompt + decodes == 0:
        return
    profile = load_profile(*key)
    power = profile.power
    features = prompt, int(prompt > 0), prompt * prompt, 0, decodes, context
    seen = []
    for share in (None, cap, lower * cap):
        cap_w = None if share is None else power.idle_w + share * (power.most_w - power.idle_w)
        row = power.packed_with(profile.law, cap_w)
        seconds, watts = iteration_s(row, *features), power_w(row, prompt, decodes)
        assert cap_w is None or watts <= cap_w
        seen.append((seconds, watts, seconds * watts))
    for higher, below in pairwise(seen):
        assert below[0] >= higher[0]
        assert below[1] <= higher[1]
        assert below[2] <= higher[2] * (1 + 1e-12)  # rounding


@given(key=some_profile(), prompt=LOADS, decodes=DECODES, context=st.integers(0, 10**6), cap=st.floats(0.02, 1.0))
@settings(deadline=None, max_examples=200)
def test_under_a_cap_a_prompt_still_never_shortens_an_iteration(key, prompt, decodes, context, cap):
    profile = load_profile(*key)
    power = profile.power
    row = power.packed_with(profile.law, power.idle_w + cap * (power.most_w - power.idle_w))
    alone = iteration_s(row, 0, 0, 0, 0, decodes, context)
    mixed = iteration_s(row, prompt + 1, 1, (prompt + 1) ** 2, 0, decodes, context)
    assert mixed >= alone * (1 - 1e-9)  # the tolerance of the law's own check


def test_the_cap_of_the_published_capped_h100_follows_from_the_law():
    """0.7 of TDP: saturated prompts take 1.3 times as long, decodes no longer, as in the published synthetic rows."""
    h100, capped = load_profile("bloom-176b", "h100-80gb"), load_profile("bloom-176b", "h100-80gb-pcap")
    row = h100.power.packed_with(h100.law, 7140)
    for tokens in (1024, 2048, 8192):  # its prompts draw the TDP from 1,024 tokens on
        seconds = iteration_s(row, tokens, 1, tokens * tokens, 0, 0, 0)
        assert seconds == pytest.approx(1.3 * h100.law.prompt_s(tokens), rel=1e-12)
        assert seconds == pytest.approx(capped.law.prompt_s(tokens), rel=1e-5)  # the figures' digits
    assert iteration_s(row, 0, 0, 0, 0, 32, 40_000) == capped.law.decode_s(32, 40_000)
    assert power_w(row, 2048, 0) == 7140


def test_power_by_hand():
    power = PowerLaw(100.0, ((100, 200.0), (300, 400.0)), ((1, 150.0), (11, 250.0)), cap_slowdown=0.5)
    law = load_profile("llama2-70b", "h100-80gb").law
    row = power.packed_with(law)
    watts = {(50, 0): 200, (200, 0): 300, (290, 10): 400, (9999, 0): 400, (0, 6): 200, (0, 99): 250, (100, 99): 299}
    assert {load: round(power_w(row, *load), 9) for load in watts} == watts
    assert power_w(row, 80, 20) == 250  # what its decodes draw alone is more than the prompt points say
    capped = power.packed_with(law, 320.0)
    assert power_w(capped, 9999, 0) == 320
    free_s = iteration_s(row, 300, 1, 90_000, 0, 0, 0)
    assert iteration_s(capped, 300, 1, 90_000, 0, 0, 0) == pytest.approx(free_s * (1 + 0.5 * (400 / 320 - 1)))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"prompt_points": ()}, "prompt_points: 0 points"),
        ({"prompt_points": ((1, 300.0), (1, 400.0))}, "places must increase"),
        ({"decode_points": ((1, 300.0), (2, 200.0))}, "watts must not decrease"),
        ({"decode_points": ((1, 50.0),)}, "decode_points: 50 W is below the 100 W of idling"),
    ],
)
def test_what_is_no_power_law(change, word):
    power = PowerLaw(100.0, ((100, 200.0),), ((1, 150.0),))
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(power, **change)


def test_the_peaks_of_the_published_profile_rise_to_tdp(shared):
    """The median peak of prompts of 128 and of 2,048 tokens, Llama-2-70B on 8 A100."""
    runs = read_runs(shared / "data" / "splitwise" / "perf_model.csv")
    alike = [run for run in runs if (run.model, run.tensor_parallel) == ("llama2-70b", 8)]
    peaks = dict(prompt_power_fractions(alike))
    assert peaks[128] == pytest.approx(0.460, abs=0.001)
    assert peaks[2048] == pytest.approx(0.954, abs=0.001)
