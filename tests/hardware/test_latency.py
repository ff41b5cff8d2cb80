"""The latency law: one compiled function, monotone in and out of range."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym.hardware import LAW_SIZE, LatencyLaw, iteration_s, latency, list_profiles, load_profile
from splitgym.hardware.latency import MAX_POINTS

PROFILES = [load_profile(*key) for key in list_profiles()]
ROUNDING = 1e-12  # relative; interpolation may miss a point by a rounding
FEATURES = ("prompt_tokens", "prompt_sequences", "attention", "prefill_context", "decodes", "decode_context")

profiles = st.sampled_from(PROFILES)
sizes = st.one_of(st.integers(0, 600), st.integers(0, 10**6))


def law_of(**changes: object) -> LatencyLaw:
    fields: dict[str, object] = {
        "decode_points": ((1, 0.03), (64, 0.05)),
        "batch_points": ((1, 0.04), (1000, 0.1), (2000, 0.3)),
        "decode_context_s": 1e-7,
        "mixed_context_s": 2e-7,
        "mixed_decode_s": 2e-3,
        "attention_s": 1e-9,
        "per_prompt_s": 1e-3,
        "prefill_context_s": 3e-8,
        "crowded_s": 5e-11,
        "crowded_from_tokens": 500,
        "host_s": 4e-3,
    }
    return LatencyLaw(**(fields | changes))  # type: ignore[arg-type]


def plain_s(law: LatencyLaw, p: int, sequences: int, attention: int, prefill: int, n: int, context: int) -> float:
    """The law of the contract in plain Python."""

    def height(points: tuple[tuple[int, float], ...], x: int) -> float:
        if len(points) == 1 or x <= points[0][0]:
            return points[0][1]
        for (x0, y0), (x1, y1) in pairwise(points):
            if x <= x1 or x1 == points[-1][0]:
                return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        raise AssertionError

    if p == 0:
        return law.host_s + height(law.decode_points, n) + law.decode_context_s * context
    time_s = law.host_s + height(law.batch_points, p + n) + law.per_prompt_s * sequences
    time_s += law.attention_s * attention / 2 + law.prefill_context_s * prefill
    time_s += law.crowded_s * n * max(0, context - law.crowded_from_tokens)
    return time_s + law.mixed_context_s * context + law.mixed_decode_s * n


@settings(deadline=None)  # the first example may compile
@given(
    profiles,
    sizes,
    st.integers(0, 512),
    st.integers(0, 10**12),
    sizes,
    st.integers(0, 512),
    st.integers(0, 10**8),
)
def test_compiled_equals_plain(profile, prompt, sequences, attention, prefill, decodes, context):
    batch = (prompt, sequences, attention, prefill, decodes, context)
    assert iteration_s(profile.law.packed(), *batch) == pytest.approx(plain_s(profile.law, *batch), rel=1e-12)


def test_every_term_of_the_law_counts():
    law = law_of()
    assert iteration_s(law.packed(), 100, 2, 5000, 30, 4, 700) == pytest.approx(plain_s(law, 100, 2, 5000, 30, 4, 700))
    # by hand: 4 ms + H_p(1500) = 200 ms + 1 ms + c·1500²/2 = 1.125 ms
    assert law.prompt_s(1500) == pytest.approx(0.206125, rel=1e-12)
    # beyond the last point the last slope goes on: H_p(3000) = 500 ms; 4.5 ms of attention
    assert law.prompt_s(3000) == pytest.approx(0.004 + 0.5 + 0.001 + 0.0045, rel=1e-12)
    assert law.decode_s(64, 64_000) == pytest.approx(0.004 + 0.05 + 0.0064, rel=1e-12)


@settings(max_examples=300, deadline=None)
@given(
    profiles,
    st.tuples(
        sizes,
        st.integers(0, 512),
        st.integers(0, 10**12),
        sizes,
        st.integers(1, 10**5),
        st.integers(0, 10**8),
    ),
    st.integers(0, 5),
    st.integers(1, 10**6),
)
def test_more_work_never_takes_less_time(profile, batch, feature, more):
    if batch[0] == 0:
        batch = (0, 0, 0, 0, *batch[4:])
    larger = list(batch)
    larger[feature] += more
    if batch[0] == 0 and feature < 4:  # a prompt joins a batch of decodes
        larger[:4] = [more, 1, more * more, 0]
    row = profile.law.packed()
    assert iteration_s(row, *larger) >= iteration_s(row, *batch) * (1 - ROUNDING), FEATURES[feature]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_a_one_token_prompt_never_shortens_an_iteration(profile):
    row = profile.law.packed()
    for decodes in (*range(1, 600), 10**4, 10**6):
        pure_s = iteration_s(row, 0, 0, 0, 0, decodes, 1000 * decodes)
        assert iteration_s(row, 1, 1, 1, 0, decodes, 1000 * decodes) >= pure_s * (1 - ROUNDING)


def test_uncontended_closed_form_equals_the_sum():
    law = law_of()
    prompts, outputs = np.array([1, 700, 5000, 20000]), np.array([1, 2, 300, 1000])
    ttft_s, e2e_s = law.uncontended_s(prompts, outputs)
    for i, (prompt, output) in enumerate(zip(prompts.tolist(), outputs.tolist(), strict=True)):
        assert ttft_s[i] == law.prompt_s(prompt)
        steps_s = sum(law.decode_s(1, prompt + k) for k in range(1, output))
        assert e2e_s[i] == pytest.approx(ttft_s[i] + steps_s, rel=1e-12)
    assert e2e_s[0] == ttft_s[0]  # one token: no token phase


def test_laws_stack():
    rows = np.stack([law_of().packed(), law_of(host_s=0.0).packed()])
    assert rows.shape == (2, LAW_SIZE)
    assert iteration_s(rows[0], 0, 0, 0, 0, 1, 0) - iteration_s(rows[1], 0, 0, 0, 0, 1, 0) == pytest.approx(4e-3)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"decode_points": ()}, "decode_points"),
        ({"decode_points": tuple((i, 0.03) for i in range(MAX_POINTS + 1))}, "decode_points"),
        ({"batch_points": ((1, 0.2), (2, 0.1))}, "batch_points"),
        ({"batch_points": ((2, 0.1), (2, 0.2))}, "batch_points"),
        ({"mixed_context_s": 0.0}, "mixed_context_s"),
        ({"batch_points": ((1, 0.001),), "per_prompt_s": 0.0}, "mixed_decode_s"),
    ],
)
def test_a_law_that_could_shrink_is_refused(changes, field):
    with pytest.raises(ValueError, match=field):
        law_of(**changes)


def test_looked_up_values_are_those_of_the_functions() -> None:
    law = load_profile("llama2-70b", "h100-80gb").law
    row = law.packed()
    for n in (0, 1, 2, 33, 1023, 1024, 5000):
        exact = latency._points_s(row, latency._DECODE_POINTS, len(law.decode_points), float(n))
        assert iteration_s(row, 0, 0, 0, 0, n, 0) == law.host_s + exact
    for n in (1, 17, 4095, 4096, 60_000):
        exact = latency._points_s(row, latency._BATCH_POINTS, len(law.batch_points), float(n))
        assert iteration_s(row, n, 0, 0, 0, 0, 0) == law.host_s + exact
