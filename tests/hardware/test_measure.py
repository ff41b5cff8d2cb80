"""Measuring without a GPU: the grid, what readings come to, the folder; and a shard on the CPU that computes right."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from splitgym.errors import SplitgymError
from splitgym.hardware.layer_calibration import fit_layer_profile
from splitgym.hardware.measure import MOST_TAKES, Grid, Mix, Reading, Work, grid, measure_shard, settled
from splitgym.hardware.measure_gpu import measure_gpu, what_fits
from splitgym.hardware.models import ModelShape, ModelSpec, load_facts
from splitgym.hardware.widths import Widths

torch = pytest.importorskip("torch", reason="needs the [learn] extra")

SPEC = ModelSpec("toy", layers=3, kv_heads=2, head_dim=16, bytes_per_element=2, weight_bytes=10**6)
SHAPE = ModelShape("toy", hidden=64, heads=8, feed_forward=96, vocabulary=100, query_key_norm=True)
LITTLE = Grid((1, 8), (1, 4), (Mix(8, 0, 0, 0), Mix(0, 0, 4, 32), Mix(8, 16, 4, 32), Mix(8, 4096, 0, 0)))


def shard(layers: int = 3, cache_tokens: int = 512, tensor_parallel: int = 1):
    from splitgym.hardware.shard import Shard

    torch.manual_seed(0)
    return Shard(Widths(SPEC, SHAPE, tensor_parallel), "cpu", layers, cache_tokens)


def test_the_grid_has_prompts_decodes_and_both_within_its_limits():
    points = grid(max_tokens=2048, max_sequences=64, max_context=8192)
    assert points.tokens[:6] == (1, 2, 4, 8, 16, 24) and points.tokens[-1] == 2048
    assert points.sequences == (1, 2, 4, 8, 16, 32, 64)
    assert len(set(points.mixes)) == len(points.mixes)
    for mix in points.mixes:
        assert mix.tokens <= 2048
        assert mix.sequences <= 64
        assert mix.prefill_chunk + mix.kv_prefill <= 8192
        assert mix.kv_decode <= 8192
    kinds = {(mix.prefill_chunk > 0, mix.kv_prefill > 0, mix.n_decode > 0) for mix in points.mixes}
    assert kinds == {(True, False, False), (True, True, False), (False, False, True), (True, False, True), (True,) * 3}


def test_the_grid_of_small_limits():
    points = grid(max_tokens=16, max_sequences=1, max_context=16)
    assert points == Grid((1, 2, 4, 8, 16), (1,), (Mix(16, 0, 0, 0), Mix(0, 0, 1, 16)))


def test_a_reading_is_the_median_of_its_runs_over_the_times_in_one():
    runs_s = [0.010, 0.010, 0.010, 0.010, 0.010, 0.500]  # one outlier: neither median nor spread moves
    reading = settled(Work(lambda: None, times=5), lambda work: runs_s)
    assert reading == Reading(0.002, 0.0)


def test_unsteady_readings_are_taken_again_and_the_steadiest_is_kept():
    steady, shaky, worse = [1.0, 1.0, 1.01, 1.01], [1.0, 1.2, 1.4, 1.6], [1.0, 2.0, 3.0, 4.0]

    def timer_of(takes):
        left = iter(takes)
        return lambda work: next(left)

    work = Work(lambda: None, 1)
    assert settled(work, timer_of([worse, steady])).seconds == pytest.approx(1.005)
    assert settled(work, timer_of([worse, shaky, worse])).seconds == pytest.approx(1.3)
    calls = []
    settled(work, lambda work: calls.append(1) or worse)
    assert len(calls) == MOST_TAKES


def test_the_folder(tmp_path):
    """Layout of the profiles that `fit` reads; what does not fit the cache is left out and counted."""
    counted = shard()

    def timer(work: Work) -> list[float]:
        work.run()  # every point runs
        return [1e-5 * work.times] * 4

    measure_shard(counted, timer, LITTLE, tmp_path, {"model": "toy"}, done=lambda name: None)
    files = {path.name: path.read_text().splitlines() for path in tmp_path.iterdir()}
    assert files["dense.csv"][0] == "layer,tokens,time_us"
    assert files["per_sequence.csv"][0] == "layer,sequences,time_us"
    assert files["attention.csv"][0] == "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"
    assert files["attention.csv"][1:] == ["8,0,0,0,10.0", "0,0,4,32,10.0", "8,16,4,32,10.0"]
    assert files["iterations.csv"][1:] == ["8,0,0,0,10.0"]
    dense = list(csv.DictReader(files["dense.csv"]))
    assert {row["layer"] for row in dense} == {
        *("layernorm", "qkv_proj", "qk_norm", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj"),
        *("embedding", "final_layernorm"),
    }
    assert {(row["tokens"], row["time_us"]) for row in dense} == {("1", "10.0"), ("8", "10.0")}
    assert [row.split(",")[:2] for row in files["per_sequence.csv"][1:]] == [
        [name, number] for name in ("lm_head", "sampler") for number in ("1", "4")
    ]
    meta = yaml.safe_load((tmp_path / "profile_meta.yaml").read_text())
    assert meta["model"] == "toy"
    assert meta["statistics"] == {"readings": 28, "spread_median": 0.0, "spread_max": 0.0, "points_left_out": 1}


def test_no_whole_iterations_of_a_part_of_the_model(tmp_path):
    measure_shard(shard(layers=2), lambda work: [1.0] * 4, LITTLE, tmp_path, {}, done=lambda name: None)
    assert not (tmp_path / "iterations.csv").exists()


def test_fit_takes_the_folder(tmp_path):
    """Every operator takes 10 µs: the law fitted to the folder says what they add up to."""
    facts = tmp_path / "facts.yaml"
    facts.write_text(
        "models:\n  - {name: toy, layers: 3, kv_heads: 2, head_dim: 16, bytes_per_element: 2, weight_bytes: 1000000}\n"
    )
    meta = {"model": "toy", "hardware": "h200-sxm", "tp_degrees": [1]}
    points = grid(256, 32, 1024)
    measure_shard(
        shard(cache_tokens=40_000), lambda work: [1e-5 * work.times] * 4, points, tmp_path, meta, done=lambda name: None
    )
    profile = fit_layer_profile(tmp_path, tmp_path / "p.yaml", facts_path=facts)
    layer_us, once_us = 10 * (2 + 7 + 1), 4 * 10  # two norms, seven more operators, attention; embedding … sampler
    assert profile.law.decode_s(4, 4 * 32) == pytest.approx((3 * layer_us + once_us) * 1e-6, rel=1e-3)
    assert profile.law.prompt_s(32) == pytest.approx((3 * layer_us + once_us) * 1e-6, rel=1e-3)


@pytest.mark.parametrize("mix", [Mix(8, 0, 0, 0), Mix(8, 16, 0, 0), Mix(0, 0, 3, 32), Mix(8, 16, 3, 32)])
def test_attention_is_attention(mix):
    """Against softmax written out, over the keys and values that the pool holds afterwards."""
    one = shard()
    qkv = torch.randn(mix.tokens, (8 + 2 * 2) * 16)
    output = one._attend(qkv, mix, part=1).unflatten(1, (8, 16))
    first = mix.cached_tokens * 2 * 16
    length, start = mix.prefill_chunk + mix.kv_prefill, first
    expected = []
    sequences = [(length, range(mix.prefill_chunk))] if mix.prefill_chunk else []
    sequences += [(mix.kv_decode, [mix.prefill_chunk + decode]) for decode in range(mix.n_decode)]
    for tokens, queries in sequences:
        size = tokens * 2 * 16
        keys, values = (pool[start : start + size].view(2, tokens, 16) for pool in (one._keys, one._values))
        start += size
        for place, query in enumerate(queries):
            seen = tokens - len(queries) + place + 1  # causal: itself and what came before
            for head in range(8):
                q = qkv[query, head * 16 : (head + 1) * 16]
                weights = torch.softmax(keys[head // 4, :seen] @ q / 4.0, dim=0)  # 4 = √head_dim
                expected.append(weights @ values[head // 4, :seen])
    written = qkv[-1, 8 * 16 : 9 * 16]
    assert torch.equal(keys[0, -1], written)  # the newest key is in the cache
    # float32 sums in another order
    assert torch.allclose(output.flatten(0, 1), torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize("tensor_parallel", [1, 2, 4, 8])
def test_an_iteration_yields_logits_for_each_sequence(tensor_parallel):
    one = shard(tensor_parallel=tensor_parallel)
    mix = Mix(8, 16, 3, 32)
    logits = one.logits(torch.randint(10, (mix.tokens,)), mix)
    assert logits.shape == (4, -(-100 // tensor_parallel))
    assert bool(torch.isfinite(logits).all())


def test_what_fits():
    """By hand: Llama-3.1-70B over 8 has 8 · 10^9 elements over 80 layers, and a key and a value of 128 a layer."""
    facts = load_facts()
    widths = Widths(facts.model("llama3.1-70b"), facts.shape("llama3.1-70b"), 8)
    per_layer = 8192 * (1280 + 1024 + 3 * 3584)
    assert widths.layer_elements == per_layer
    layers, cache_tokens = what_fits(widths, 80 * 10**9)
    assert (layers, cache_tokens) == (80, 20 * 10**9 // 512)
    ends = 2 * 16_032 * 8192 * 2
    assert what_fits(widths, 10 * 10**9)[0] == (6 * 10**9 - ends) // (2 * per_layer)
    with pytest.raises(SplitgymError, match=r"^tensor_parallel: 8: not one layer of llama3.1-70b fits 0.6 x 1.0 GB"):
        what_fits(widths, 10**9)


def test_refuses_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SplitgymError, match=r"^measure: torch sees no CUDA GPU here; [^\n]*$"):
        measure_gpu("llama3.1-8b", 1, LITTLE, tmp_path)


def test_refuses_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(SplitgymError, match=r"^measure: torch is not installed; [^\n]*$"):
        measure_gpu("llama3.1-8b", 1, LITTLE, tmp_path)


@pytest.mark.parametrize(
    ("model", "tensor_parallel", "words"),
    [("llama3.1-8B", 1, "did you mean 'llama3.1-8b'"), ("llama3.1-8b", 3, "3 does not divide the 32 heads")],
)
def test_refuses_a_model_it_cannot_build(tmp_path: Path, model, tensor_parallel, words):
    with pytest.raises(SplitgymError, match=words) as caught:
        measure_gpu(model, tensor_parallel, LITTLE, tmp_path)
    assert "\n" not in str(caught.value)


def test_refuses_a_machine_it_does_not_know(tmp_path):
    with pytest.raises(SplitgymError, match=r"^hardware: no facts of 'h200'; did you mean 'h200-sxm'\?[^\n]*$"):
        measure_gpu("llama3.1-8b", 1, LITTLE, tmp_path, hardware="h200")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu(tmp_path):
    """A short grid end to end; a whole iteration is about its parts, 32 layers of them."""
    meta = measure_gpu("llama3.1-8b", 8, grid(512, 16, 1024), tmp_path)
    assert meta["layers_held"] == 32
    tables = {name: list(csv.DictReader((tmp_path / f"{name}.csv").open())) for name in ("dense", "attention")}
    for row in csv.DictReader((tmp_path / "iterations.csv").open()):
        tokens = str(int(row["prefill_chunk"]) + int(row["n_decode"]))
        dense = {part["layer"]: float(part["time_us"]) for part in tables["dense"] if part["tokens"] == tokens}
        if not dense:
            continue  # a number of tokens that the dense layers were not measured at
        mix = [
            part for part in tables["attention"] if all(part[name] == row[name] for name in Mix.__dataclass_fields__)
        ]
        layer = sum(dense.values()) + dense["layernorm"] - dense["embedding"] - dense["final_layernorm"]
        composed_us = 32 * (layer + float(mix[0]["time_us"]))
        assert float(row["time_us"]) == pytest.approx(composed_us, rel=0.4)  # head, gaps, and warm or cold caches
