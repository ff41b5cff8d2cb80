"""Layer profiles: whole iterations by hand, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from splitgym.errors import SplitgymError
from splitgym.hardware.layer_engine import read_engine_settings
from splitgym.hardware.layer_profile import Table, read_layer_profile
from tests.hardware.layer_folder import SETTINGS, attention_us, write_folder

ONE_LINE = r"^[^\n]*$"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "profile")


def test_an_iteration_by_hand(folder):
    """32 · (attention + 9 dense operations, the norm counted twice) + embedding + final norm + head + sampler."""
    whole = read_layer_profile(folder).compose(32)
    which = (whole.chunk_tokens == 64) & (whole.prefill_context == 128) & (whole.decodes == 16)
    which &= whole.context_each == 1024
    dense_us = 10 + 0.05 * (64 + 16)
    expected_us = 32 * (attention_us(64, 128, 16, 1024) + 9 * dense_us) + 2 * dense_us + 2 * 7
    assert whole.seconds[which] == pytest.approx([1e-6 * expected_us], rel=1e-12)
    assert whole.decode_context[which] == [16 * 1024]  # contexts are of each decode


def test_beyond_its_rows_a_table_goes_on_in_proportion():
    table = Table(np.array([4.0, 8.0]), np.array([1.0, 3.0]))
    assert table.at(np.array([1.0, 4.0, 6.0, 8.0, 16.0])).tolist() == [1, 1, 2, 3, 6]


def test_prompts_between_the_grid(folder):
    """Attention that goes by the square of the chunk, and a constant, is interpolated exactly at the grid."""
    profile = read_layer_profile(folder)
    between, whole = profile.prompts_between(32), profile.compose(32)
    alone = whole.of(whole.kinds["prompt"] & (whole.prefill_context == 0))
    assert between.chunk_tokens.tolist() == alone.chunk_tokens.tolist() == [16, 64, 256, 1024]
    assert between.seconds == pytest.approx(alone.seconds, rel=1e-12)


def test_settings_of_the_run(folder):
    assert read_engine_settings(folder) is None
    (folder / "run_meta.json").write_text(SETTINGS)
    settings = read_engine_settings(folder)
    assert settings is not None
    assert settings.kv_capacity_tokens == 1600  # one block is the engine's own
    assert (settings.engine_kwargs.max_num_seqs, settings.resolved_config.scheduler_config.async_scheduling) == (
        128,
        True,
    )


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("attention.csv", "n_decode", "n_decodes", ("attention.csv:1", "no column 'n_decode'", "'n_decodes'")),
        (
            "attention.csv",
            "0,0,1,128,5.128",
            "0,0,1,128,fast",
            ("attention.csv:2", "time_us", "'fast' is not a number"),
        ),
        ("attention.csv", "0,0,1,128,5.128", "0,0,1,128,-1", ("attention.csv:2", "microseconds > 0")),
        ("attention.csv", "0,0,1,128,5.128", "0,0,1.5,128,1", ("attention.csv:2", "n_decode", "whole number ≥ 0")),
        ("attention.csv", "0,0,1,128,5.128", "0,0,0,128,1", ("attention.csv:2", "neither prefill_chunk nor n_decode")),
        ("dense.csv", "down_proj,16", "down_prj,16", ("dense.csv", "unknown 'down_prj'", "did you mean 'down_proj'")),
        ("dense.csv", "embedding", "final_layernorm", ("dense.csv", "no rows of layer 'embedding'")),
        ("per_sequence.csv", "sampler,1,", "sampler,0,", ("per_sequence.csv:4", "sequences", "≥ 1")),
        ("profile_meta.yaml", "tp_degrees: [1]", "tp_degrees: []", ("profile_meta.yaml", "tp_degrees")),
        ("profile_meta.yaml", "hardware: RTX4090\n", "", ("profile_meta.yaml", "hardware: missing")),
    ],
)
def test_malformed(folder, file, old, new, words):
    path = folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(SplitgymError, match=ONE_LINE) as caught:
        read_layer_profile(folder)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("file", ["attention.csv", "dense.csv", "per_sequence.csv", "profile_meta.yaml"])
def test_missing(folder, file):
    (folder / file).unlink()
    with pytest.raises(SplitgymError, match=rf"{file}: no such file"):
        read_layer_profile(folder)


def test_a_kind_of_iteration_is_missing(folder):
    path = folder / "attention.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:1] + [line for line in lines if line.startswith("0,")]) + "\n")
    with pytest.raises(SplitgymError, match=r"attention\.csv: 0 rows of prompt iterations; .* need 4 each"):
        read_layer_profile(folder)
    path.write_text(lines[0] + "\n")
    with pytest.raises(SplitgymError, match="no rows under the header"):
        read_layer_profile(folder)
