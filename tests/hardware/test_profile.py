"""Shipped profiles, and the errors of a user's own."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from splitgym.errors import SplitgymError
from splitgym.hardware import list_profiles, load_profile, load_profile_file, model_spec

ONE_LINE = r"^[^\n]*$"


def test_what_ships():
    keys = list_profiles()
    assert len([key for key in keys if key[0] in ("llama2-70b", "bloom-176b") and "80gb" in key[1]]) == 12
    assert {("llama3.1-8b", "rtx4090", 1), ("llama3.1-8b", "rtxpro6000", 1), ("qwen3-32b", "rtxpro6000", 2)} < set(keys)
    for key in keys:
        profile = load_profile(*key)
        assert (profile.model.name, profile.hardware, profile.tensor_parallel) == key
        assert profile.provenance.licence in ("MIT", "Apache-2.0")
        if profile.hardware == "h100-80gb-pcap":
            assert any("synthetic" in line for line in profile.provenance.assumptions)


def test_kv_bytes_per_token():
    assert model_spec("llama2-70b").kv_bytes_per_token == 327_680  # 8 KV heads of grouped-query attention
    assert model_spec("bloom-176b").kv_bytes_per_token / 2**20 == pytest.approx(3.83, abs=0.005)


def test_kv_capacity():
    # (0.9 · 8 · 80 · 2^30 − 135e9) / 327,680 = 1,475,449.9
    assert load_profile("llama2-70b", "h100-80gb").kv_capacity_tokens == 1_475_449
    assert load_profile("bloom-176b", "a100-80gb").kv_capacity_tokens == 72_114
    own = dataclasses.replace(load_profile("bloom-176b", "a100-80gb"), kv_capacity_override_tokens=1000)
    assert own.kv_capacity_tokens == 1000
    assert load_profile("llama3.1-8b", "rtx4090", 1).kv_capacity_tokens == 2587 * 16  # what the engine found free


def test_machine_facts():
    a100, h100, capped = (
        load_profile("llama2-70b", f"{name}-80gb{cap}") for name, cap in (("a100", ""), ("h100", ""), ("h100", "-pcap"))
    )
    assert [p.power.most_w for p in (a100, h100, capped)] == [6415.1, 10066.7, 7140]  # 0.987 of TDP; the cap
    assert [p.cost_usd_per_hour for p in (a100, h100, capped)] == [17.6, 38, 38]
    assert [p.link_bytes_per_s for p in (a100, h100, capped)] == [25e9, 50e9, 50e9]  # 200 and 400 Gbps
    assert h100.power.decode_points == capped.power.decode_points  # a cap hardly moves token generation
    for power in (a100.power, h100.power, capped.power):
        assert power.idle_w < power.decode_points[0][1] < power.prompt_points[0][1] < power.most_w
    quarter = load_profile("llama2-70b", "a100-80gb", 2)
    assert (quarter.power.most_w, quarter.cost_usd_per_hour, quarter.link_bytes_per_s) == (
        1625,
        4.4,
        6.25e9,
    )


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (("llama2-7Ob", "h100-80gb", 8), "model: unknown 'llama2-7Ob'; did you mean 'llama2-70b'?"),
        (
            ("llama2-70b", "h1OO-80gb", 8),
            "hardware: unknown 'h1OO-80gb' for llama2-70b; did you mean 'h100-80gb'?",
        ),
        (("bloom-176b", "h100-80gb", 4), "for 4; one of: 8"),
    ],
)
def test_unknown_profile(key, message):
    with pytest.raises(SplitgymError, match=ONE_LINE) as caught:
        load_profile(*key)
    assert message in str(caught.value)


def test_a_profile_written_reads_back(tmp_path):
    profile = load_profile("llama2-70b", "h100-80gb")
    path = tmp_path / "mine.yaml"
    profile.write(path)
    assert load_profile_file(path) == profile
    own = dataclasses.replace(profile, kv_capacity_override_tokens=5)
    own.write(path)
    assert load_profile_file(path) == own


def break_field(content, path, value):
    *parents, last = path
    for part in parents:
        content = content[part]
    if value is None:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["law", "attention_s"], "slow", ("law.attention_s", "'slow'", "valid number")),
        (["law", "attention_s"], -1.0, ("law.attention_s", "-1.0", "greater than or equal to 0")),
        (["law", "attention_s"], float("nan"), ("law.attention_s", "finite")),
        (["law", "attention_s"], None, ("law.attention_s", "missing", "add it")),
        (["law", "atention_s"], 1.0, ("law: unknown 'atention_s'", "did you mean 'attention_s'?")),
        (["law", "batch_points"], [[1, 0.5], [2, 0.4]], ("law", "batch_points", "must not decrease")),
        (["hbm_bytes"], 10**9, ("hbm_bytes", "no KV-cache")),
        (["model"], "llama2-70b", ("model", "'llama2-70b'")),
        (["tensor_parallel"], 0, ("tensor_parallel", "0", "greater than or equal to 1")),
    ],
)
def test_malformed_profile(tmp_path, path, value, words):
    file = tmp_path / "mine.yaml"
    load_profile("llama2-70b", "h100-80gb").write(file)
    content = yaml.safe_load(file.read_text())
    break_field(content, path, value)
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(SplitgymError, match=ONE_LINE) as caught:
        load_profile_file(file)
    for word in (str(file), *words):
        assert word in str(caught.value)


def test_a_misspelt_field_is_told_from_a_missing_one(tmp_path):
    file = tmp_path / "mine.yaml"
    load_profile("llama2-70b", "h100-80gb").write(file)
    file.write_text(file.read_text().replace("idle_w", "idel_w"))
    with pytest.raises(SplitgymError, match=r": unknown 'idel_w'; did you mean 'idle_w'\?$"):
        load_profile_file(file)


@pytest.mark.parametrize(
    ("text", "words"), [("a: [1,", "line 1: not YAML"), ("- 1\n", "no named fields"), ("", "no named fields")]
)
def test_no_profile_at_all(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SplitgymError, match=ONE_LINE) as caught:
        load_profile_file(file)
    assert str(file) in str(caught.value)
    assert words in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(SplitgymError, match="no such file"):
        load_profile_file(tmp_path / "none.yaml")
