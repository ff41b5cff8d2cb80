"""The published simulator's tables: their arithmetic, and that they are the medians of its profile."""

from pathlib import Path

import pytest

from splitgym.errors import SplitgymError
from splitgym.hardware.published_tables import LatencyTable, derive_tables, load_published_model


def test_table_interpolates_and_extrapolates_at_both_ends() -> None:
    table = LatencyTable([100, 200, 400], [1.0, 3.0, 4.0])
    assert [table(tokens) for tokens in (50, 100, 150, 200, 300, 600)] == [0.0, 1.0, 2.0, 3.0, 3.5, 5.0]


def test_mixed_batch_takes_the_prompt_table_and_a_tenth() -> None:
    latency = load_published_model("llama2-70b").latency["h100-80gb"]
    assert latency.iteration_s(1, 3, 515) == latency.prompt_s(515) * 1.1
    assert latency.iteration_s(1, 0, 515) == latency.prompt_s(515)
    assert latency.iteration_s(0, 3, 3) == latency.decode_s(3)


def test_memory_ignores_grouped_query_attention() -> None:
    llama, bloom = load_published_model("llama2-70b"), load_published_model("bloom-176b")
    assert llama.kv_bytes_per_token == 2.5 * 2**20
    assert bloom.kv_bytes_per_token == 4_014_080  # 3.83 MiB
    assert int(llama.capacity_tokens) == (640 * 2**30 - 135 * 10**9) // (5 * 2**19)


def test_shipped_tables_are_the_medians_of_the_profile(shared: Path) -> None:
    derived = derive_tables(shared / "data" / "splitwise" / "perf_model.csv")
    assert set(derived) == {"bloom-176b", "llama2-70b"}
    for model, by_hardware in derived.items():
        latency = load_published_model(model).latency
        assert set(latency) == set(by_hardware) == {"a100-80gb", "h100-80gb", "h100-80gb-pcap"}
        for hardware, table in by_hardware.items():
            knots = table["batch_tokens"]
            # A knot at the right end of its segment is recomputed, which may cost the last bit.
            assert [latency[hardware].prompt_s(x) for x in knots] == pytest.approx(table["prompt_s"], rel=1e-15)
            assert [latency[hardware].decode_s(x) for x in knots] == pytest.approx(table["decode_s"], rel=1e-15)


def test_unknown_model_names_the_mend() -> None:
    with pytest.raises(SplitgymError, match="model: unknown 'llama-2-70b'; did you mean 'llama2-70b'"):
        load_published_model("llama-2-70b")
