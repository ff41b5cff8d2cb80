"""Laws drawn within what is known of their coefficients: always valid, reproducible, spread as stated."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym.hardware import LatencyLaw, LawUncertainty, drawn_law, list_profiles, load_profile
from splitgym.hardware.latency import iteration_s
from splitgym.hardware.uncertainty import LARGEST_SPREAD, MOST_DEVIATIONS, spread_of

PROFILES = [load_profile(*key) for key in list_profiles()]
KNOWN = [profile for profile in PROFILES if profile.uncertainty is not None]
WIDE = LawUncertainty(**{field.name: LARGEST_SPREAD for field in dataclasses.fields(LawUncertainty)})
LAW = LatencyLaw(
    decode_points=((1, 0.03), (64, 0.05)),
    batch_points=((1, 0.04), (1000, 0.1)),
    decode_context_s=1e-7,
    mixed_context_s=2e-7,
    mixed_decode_s=2e-3,
    attention_s=1e-9,
    host_s=1e-3,
)


def test_every_fitted_profile_says_how_well_it_is_known():
    fitted = {"bloom-176b", "llama2-70b"}
    assert {profile.model.name for profile in KNOWN} >= fitted
    for profile in KNOWN:
        assert profile.uncertainty is not None
        assert 0 < profile.uncertainty.decode_points <= 0.1
        assert 0 < profile.uncertainty.batch_points <= 0.1


@settings(deadline=None)  # the first call loads compiled code
@given(st.sampled_from(KNOWN), st.integers(0, 2**32), st.booleans())
def test_a_drawn_law_is_valid(profile, seed, wide):
    """LatencyLaw refuses one that is not; and a prompt never shortens an iteration."""
    law = drawn_law(profile.law, WIDE if wide else profile.uncertainty, np.random.default_rng(seed))
    row = law.packed()
    for decodes in (1, 2, 7, 64, 300, 5000):
        alone_s = iteration_s(row, 0, 0, 0, 0, decodes, 1000 * decodes)
        assert iteration_s(row, 1, 1, 1, 0, decodes, 1000 * decodes) >= alone_s * (1 - 1e-12)


def test_same_generator_same_law():
    draw = [drawn_law(LAW, WIDE, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert draw[0] == draw[1] != draw[2]


def test_nothing_unknown_nothing_changed():
    assert drawn_law(LAW, LawUncertainty(), np.random.default_rng(0)) == LAW


def test_draws_are_spread_as_stated():
    """Of 4,000 draws the logarithm's deviation is the spread's within 5 %: clipping at 2 deviations takes 4 % of it."""
    rng = np.random.default_rng(1)
    laws = [drawn_law(LAW, LawUncertainty(attention_s=0.2, host_s=0.1), rng) for _ in range(4000)]
    attention = np.log([law.attention_s / LAW.attention_s for law in laws])
    assert attention.std() == pytest.approx(0.96 * 0.2, rel=0.05)
    assert attention.mean() == pytest.approx(0, abs=4 * 0.2 / 4000**0.5)  # four standard errors
    assert np.abs(attention).max() <= MOST_DEVIATIONS * 0.2 * (1 + 1e-9)
    assert np.std([law.host_s for law in laws]) == pytest.approx(0.96 * 0.1 * LAW.host_s, rel=0.05)
    assert {law.decode_points for law in laws} == {LAW.decode_points}


def test_spread_by_hand():
    """Coefficients 0.9, 1.0 and 1.1 times the law's deviate by 0.1, relatively; functions at least by their error."""
    refits = [
        dataclasses.replace(LAW, attention_s=1e-9 * factor, decode_points=((1, 0.03 * factor), (64, 0.05 * factor)))
        for factor in (0.9, 1.0, 1.1)
    ]
    spread = spread_of(LAW, refits, decode_error=0.02, prompt_error=0.03, host=0.5)
    assert spread.attention_s == 0.1
    assert spread.decode_points == 0.1
    assert spread.batch_points == 0.03
    assert spread.prefill_context_s == 0  # not in the law
    assert spread.host_s == 0.5
