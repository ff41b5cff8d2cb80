"""Composed iterations: monotone everywhere, plausible against memory and arithmetic; their laws and profiles."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from splitgym.cli.calibrate_gpu import register
from splitgym.errors import SplitgymError
from splitgym.hardware import iteration_s, list_profiles, load_profile, load_profile_file
from splitgym.hardware.compose import Batches, Composition
from splitgym.hardware.compose_fit import compose_profile, draw_batches, error_of, fit_composed
from splitgym.hardware.models import MachineSpec, ModelShape, ModelSpec, load_facts
from splitgym.hardware.operators import read_operators

ONE_LINE = r"^[^\n]*$"
FIELDS = tuple(field.name for field in dataclasses.fields(Batches))
COMPOSED = [key for key in list_profiles() if load_profile(*key).provenance.licence == "Apache-2.0"]

SPEC = ModelSpec("toy", layers=4, kv_heads=4, head_dim=128, bytes_per_element=2, weight_bytes=10**9)
SHAPE = ModelShape("toy", hidden=2048, heads=16, feed_forward=8192, vocabulary=32_000)
MACHINE = MachineSpec("toy-sxm", 8, 10_000, 10_000, 40.0, 80 * 2**30, 3.0e12, 4e11)

batches = st.tuples(
    st.integers(0, 64),  # prompts
    st.integers(1, 100_000),  # chunk: far beyond the tables
    st.integers(0, 100_000),  # context
    st.integers(0, 5000),  # decodes
    st.integers(1, 300_000),  # context of each
)


def one(*fields: int) -> Batches:
    return Batches(*(np.array([field]) for field in fields))


@pytest.fixture(scope="module")
def times(operator_tables: Path) -> Composition:
    return Composition(read_operators(operator_tables, "h100"), SPEC, SHAPE, MACHINE, 2)


@settings(deadline=None)  # two cores shared with others
@given(batch=batches, field=st.integers(0, 4), more=st.integers(1, 50_000))
def test_an_iteration_never_shrinks_when_a_batch_grows(times, batch, field, more):
    """In and out of the tables' range, though the tables fall here and there by a third."""
    larger = tuple(value + more * (place == field) for place, value in enumerate(batch))
    assert times(one(*larger)) >= times(one(*batch)) * (1 - 1e-9)  # rounding of logarithms


@pytest.fixture(scope="module")
def laws() -> dict[tuple[str, str, int], np.ndarray]:
    return {key: load_profile(*key).law.packed() for key in COMPOSED}


@settings(deadline=None)  # the first call compiles
@given(batch=batches, field=st.integers(0, 4), more=st.integers(1, 50_000), key=st.sampled_from(COMPOSED))
def test_the_shipped_laws_never_shrink_either(laws, batch, field, more, key):
    law = laws[key]
    larger = tuple(value + more * (place == field) for place, value in enumerate(batch))
    small_s, large_s = (iteration_s(law, *map(int, one(*fields).features[0])) for fields in (batch, larger))
    assert large_s >= small_s * (1 - 1e-12)


@settings(deadline=None)
@given(batch=batches)
def test_the_parts_of_an_iteration_take_no_longer_than_all_of_it(times, batch):
    prompts, chunk, context, decodes, decode_context = batch
    whole = times(one(*batch))
    assert times(one(prompts, chunk, context, 0, 1)) <= whole * (1 + 1e-9)
    assert times(one(0, 1, 0, decodes, decode_context)) <= whole * (1 + 1e-9)


def test_a_decode_reads_its_weights_and_its_cache(times):
    """Never faster than the memory; for one short sequence no more than the kernels' floors above it."""
    layer = 2 * (2048 * (8 + 2 * 2) * 128 + 2048 * 1024 + 3 * 2048 * 4096)  # bytes: qkv, o, gate, up, down of one rank
    weights_s = (4 * layer + 2 * 16_000 * 2048) / 3.0e12
    short = times(one(0, 1, 0, 1, 16))[0]
    floors_s = 4 * (4 * 5e-6 + 5 * 2.5e-6 + 2 * 5e-6 + 5e-6) + 5e-6  # products, small, all-reduce, attention; head
    assert weights_s < short < 1.25 * (weights_s + floors_s)  # noise of a fifth
    long = times(one(0, 1, 0, 64, 16_384))[0]
    cache_s = 4 * 64 * 16_384 * 2 * 2 * 128 * 2 / 3.0e12
    assert cache_s + weights_s < long < 1.25 * (cache_s + weights_s + floors_s + 64 * 16_000 / 1e9)


def test_the_law_fits_batches_it_has_not_seen(times):
    capacity = SPEC.kv_capacity_tokens(2 * MACHINE.hbm_bytes_per_gpu)
    drawn = draw_batches("some", capacity)
    law = fit_composed(drawn, [times(kind) for kind in drawn])
    error = error_of(law, times, draw_batches("others", capacity))
    for mean in (error.prompt_mean, error.decode_mean, error.mixed_mean):
        assert mean < 0.06  # the toy's tables are coarser and noisier than real ones, whose laws have 0.025


def test_a_law_is_recovered_from_its_own_times():
    """Without misfit the coefficients come back: those of a shipped law, up to what its knots leave open."""
    true = load_profile("llama3.1-8b", "h100-sxm", 1).law
    drawn = draw_batches("some", 400_000)
    seconds = [np.array([iteration_s(true.packed(), *f) for f in kind.features.tolist()]) for kind in drawn]
    law = fit_composed(drawn, seconds)
    for name in ("decode_context_s", "mixed_context_s", "attention_s", "prefill_context_s"):
        assert getattr(law, name) == pytest.approx(getattr(true, name), rel=1e-3)


def test_drawn_batches_fit_the_memory():
    for capacity in (2_000, 70_000, 10**7):
        drawn = draw_batches("some", capacity)
        for kind in drawn:
            assert np.all(kind.features >= 0)
            assert np.all(kind.decodes * kind.decode_context <= max(capacity, kind.decodes.max() * 32))
        assert np.all(drawn.mixed.prompt_tokens + drawn.mixed.decodes <= 16_384)
        assert np.any(drawn.prompt.context > 0) and np.any(drawn.prompt.context == 0)


@pytest.mark.parametrize("key", COMPOSED, ids=lambda key: "/".join(map(str, key)))
def test_shipped_profiles_state_their_error_and_source(key):
    profile = load_profile(*key)
    assert profile.error.prompt_mean < 0.025 and profile.error.decode_mean < 0.025
    assert profile.error.mixed_mean < 0.03 and profile.error.prompt_p95 < 0.08
    # single kernels 10 % off by themselves leave the sum less so, and never less than what the law misses
    assert profile.error.decode_mean <= profile.uncertainty.decode_points <= 0.12
    assert "aiconfigurator" in profile.provenance.source
    assert any("host_s = 0" in line for line in profile.provenance.assumptions)
    # a decode alone cannot beat the memory: each GPU reads its share of the weights, embeddings aside
    machine = load_facts().machine(profile.hardware)
    read_s = 0.85 * profile.model.weight_bytes / profile.tensor_parallel / machine.hbm_bytes_per_s_per_gpu
    assert profile.law.decode_s(1, 128) > read_s


def test_five_models_ship_for_every_gpu_that_holds_them():
    hardware = {"a100-sxm", "h100-sxm", "h200-sxm", "b200-sxm", "l40s"}
    for model in ("llama3.1-8b", "llama3.1-70b", "qwen3-32b", "llama2-70b", "bloom-176b"):
        without = {"l40s"} if model == "bloom-176b" else set()  # 329 GB of weights do not fit eight of 45 GiB
        assert {key[1] for key in COMPOSED if key[0] == model} == hardware - without


def test_shipped_profiles_are_what_compose_gives(shared, tmp_path):
    folder = shared / "data" / "operators"
    composed = compose_profile("llama3.1-8b", "h100", 1, folder, tmp_path / "p.yaml")
    assert load_profile_file(tmp_path / "p.yaml") == composed
    shipped = load_profile("llama3.1-8b", "h100-sxm", 1)
    for batch in ((1, 512, 0, 0, 0), (0, 0, 0, 32, 1024), (1, 512, 1024, 32, 1024)):
        ours, theirs = (iteration_s(p.law.packed(), *map(int, one(*batch).features[0])) for p in (composed, shipped))
        assert ours == pytest.approx(theirs, rel=1e-3)  # another version of the solver rounds otherwise


def test_against_the_profile_of_2023():
    """Newer kernels without the host's time are faster everywhere, and by no more than a factor of five."""
    for measured_on, composed_on in (("a100-80gb", "a100-sxm"), ("h100-80gb", "h100-sxm")):
        measured, composed = (load_profile("llama2-70b", name).law for name in (measured_on, composed_on))
        for prompt in (128, 512, 2048, 8192):
            assert 0.2 < composed.prompt_s(prompt) / measured.prompt_s(prompt) < 1
        for number in (1, 16, 64):
            assert 0.2 < composed.decode_s(number, 576 * number) / measured.decode_s(number, 576 * number) < 1
        # at 2048 tokens arithmetic rules on both sides: there they are closest
        ratios = [composed.prompt_s(n) / measured.prompt_s(n) for n in (128, 2048, 8192)]
        assert max(ratios) == ratios[1]


@pytest.mark.parametrize(
    ("model", "gpu", "tensor_parallel", "words"),
    [
        ("lama3.1-70b", "h100", 8, ("model: no facts of 'lama3.1-70b'", "did you mean 'llama3.1-70b'?")),
        ("llama3.1-70b", "h10O", 8, ("gpu: no operator tables of 'h10O'", "did you mean 'h100'?")),
        ("llama3.1-70b", "h100", 3, ("tensor_parallel: 3", "one of: 1, 2, 4")),
        ("llama3.1-70b", "h100", 1, ("tensor_parallel: 1", "141 GB of weights", "use more GPUs")),
    ],
)
def test_errors(tmp_path, operator_tables, model, gpu, tensor_parallel, words):
    with pytest.raises(SplitgymError, match=ONE_LINE) as caught:
        compose_profile(model, gpu, tensor_parallel, operator_tables, tmp_path / "out.yaml")
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_matrices_and_a_machine_without_facts(tmp_path, operator_tables):
    facts = tmp_path / "facts.yaml"
    own = "{name: own, layers: 4, kv_heads: 4, head_dim: 128, bytes_per_element: 2, weight_bytes: 1000000000}"
    facts.write_text(f"models:\n  - {own}\n")
    with pytest.raises(SplitgymError, match="model: no matrices of 'own'"):
        compose_profile("own", "h100", 1, operator_tables, tmp_path / "out.yaml", facts_path=facts)
    facts.write_text(
        facts.read_text() + "shapes:\n  - {name: own, hidden: 2048, heads: 16, feed_forward: 8192, vocabulary: 32000}\n"
    )
    profile = compose_profile("own", "h100", 1, operator_tables, tmp_path / "out.yaml", facts_path=facts)
    assert (profile.name, profile.provenance.licence) == ("own.h100-sxm.tp1", "not stated")
    assert profile.cost_usd_per_hour == pytest.approx(55.04 / 8)


def test_the_command(tmp_path, operator_tables):
    app = typer.Typer()
    register(app)
    out = tmp_path / "p.yaml"
    options = ["--gpu", "h100", "--tensor-parallel", "2", "--operators", str(operator_tables), "--out", str(out)]
    ran = CliRunner().invoke(app, ["compose", "--model", "llama3.1-8b", *options, "--json"])
    assert ran.exit_code == 0, ran.output
    (record,) = json.loads(ran.output)
    assert record["profile"] == load_profile_file(out).name == "llama3.1-8b.h100-sxm.tp2"
    failed = CliRunner().invoke(app, ["compose", "--model", "llama3.1-8B", *options])
    assert isinstance(failed.exception, SplitgymError)
    assert "did you mean 'llama3.1-8b'" in str(failed.exception)
