"""Operator tables: read, smoothed, interpolated; and the errors of a folder that is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from splitgym.errors import SplitgymError
from splitgym.hardware.operators import Surface, read_operators

ONE_LINE = r"^[^\n]*$"
GPUS = ("a100", "h100-sxm", "h200", "b200_sxm", "l40s")


def test_a_power_law_is_met_between_its_places_and_beyond_the_last():
    places = np.array([1.0, 10.0, 1000.0])
    surface = Surface((places,), 2e-6 * places)
    wanted = np.array([1, 3, 10, 500, 1000, 4000])
    assert surface(wanted) == pytest.approx(2e-6 * wanted, rel=1e-12)  # exact but for rounding
    assert surface([0.1]) == pytest.approx([2e-6])  # below the first place: the first


@settings(deadline=None)  # the first example imports
@given(
    npst.arrays(np.float64, (4, 5), elements=st.floats(1e-6, 1.0)),
    st.tuples(st.floats(0.1, 1e4), st.floats(0.1, 1e4), st.floats(1.0, 100.0)),
)
def test_a_smoothed_surface_never_falls(seconds, place):
    surface = Surface((np.array([1.0, 2.0, 8.0, 50.0]), np.array([1.0, 3.0, 9.0, 27.0, 81.0])), seconds).monotone
    first, second, factor = place
    low = surface([first], [second])
    slack = 1 - 1e-9  # rounding of logarithms
    assert surface([first * factor], [second]) >= low * slack
    assert surface([first], [second * factor]) >= low * slack


def test_smoothing_keeps_what_is_monotone_and_halves_noise_otherwise():
    places = np.array([1.0, 2.0, 4.0, 8.0])
    rising = np.array([1.0, 2.0, 2.0, 5.0])
    assert Surface((places,), rising).monotone.seconds == pytest.approx(rising, rel=1e-12)
    spiked = Surface((places,), np.array([1.0, 4.0, 1.0, 5.0])).monotone.seconds
    assert spiked == pytest.approx([1.0, 2.0, 2.0, 5.0])  # the geometric mean of 4 and 1


def test_only_bfloat16_in_graphs_is_read(operator_tables):
    tables = read_operators(operator_tables, "h100")
    assert tables.gpu == "h100_sxm"
    assert tables.group_sizes() == [1, 2, 4]
    # 2 · 8192 · 4096 · 4096 operations at 8e14 per second and a floor of 5 µs; noise up to a fifth
    assert tables.gemm(4096, 4096)([8192])[0] == pytest.approx(2 * 8192 * 4096**2 / 8e14 + 5e-6, rel=0.21)
    assert tables.all_reduce(2)([128])[0] == pytest.approx(5e-6, rel=0.21)  # eager would be tenfold


def test_a_missing_shape_is_in_proportion(operator_tables):
    """The largest matrix was left out: as long as the next smaller one, times the ratio of their sizes."""
    tables = read_operators(operator_tables, "h100")
    largest, smaller = tables.gemm(16384, 16384)([64]), tables.gemm(4096, 16384)([64])
    assert largest == pytest.approx(4 * smaller, rel=0.25)  # smoothing and noise


def test_heads_that_were_not_measured_are_larger_batches_of_fewer(operator_tables):
    tables = read_operators(operator_tables, "h100")
    measured, scaled = tables.decode_attention(16, 4), tables.decode_attention(32, 8)
    assert scaled([8], [4096]) == pytest.approx(measured([16], [4096]), rel=1e-12)
    with pytest.raises(SplitgymError, match="no rows for 7 heads over 1 KV heads") as caught:
        tables.prefill_attention(7, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gpu", GPUS)
def test_the_real_tables(shared: Path, gpu: str):
    """All of them are read, full and positive; a large product runs at a plausible rate."""
    tables = read_operators(shared / "data" / "operators", gpu)
    for surface in (
        tables.gemm(1280, 8192),
        tables.gemm(128_256, 4096),
        tables.all_reduce(8),
        tables.prefill_attention(14, 14),
        tables.decode_attention(14, 14),
    ):
        assert np.all(np.isfinite(surface.seconds))
        assert np.all(surface.seconds > 0)
    dense_tflops = {"a100": 312, "h100-sxm": 989, "h200": 989, "b200_sxm": 2250, "l40s": 362}[gpu]  # data sheets
    rate = 2 * 4096 * 8192 * 8192 / tables.gemm(8192, 8192)([4096])[0] / 1e12
    assert 0.4 * dense_tflops < rate < dense_tflops


@pytest.mark.parametrize(
    ("spoil", "gpu", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "h100", ("no such folder",)),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "h100", ("no operator tables",)),
        (lambda folder: None, "h10O", ("'h10O'", "did you mean 'h100'?")),
        (lambda folder: (folder / "h100_sxm.gemm.parquet").unlink(), "h100", ("gemm.parquet: no such file", "all of")),
        (lambda folder: (folder / "h100_sxm.gemm.parquet").write_text("m,n,k"), "h100", ("gemm.parquet", "Parquet")),
        (lambda folder: without(folder, "num_gpus"), "h100", ("allreduce.parquet: no column 'num_gpus'",)),
    ],
)
def test_a_folder_that_is_none(tmp_path, operator_tables, spoil, gpu, words):
    folder = tmp_path / "operators"
    shutil.copytree(operator_tables, folder)
    spoil(folder)
    with pytest.raises(SplitgymError, match=ONE_LINE) as caught:
        read_operators(folder, gpu)
    for word in words:
        assert word in str(caught.value)


def without(folder: Path, column: str) -> None:
    path = folder / "h100_sxm.allreduce.parquet"
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
