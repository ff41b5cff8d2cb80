"""The published simulator: its reference cases to the last bit, a few by hand, and mistakes."""

from __future__ import annotations

import csv
import gzip
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from splitgym.errors import SplitgymError
from splitgym.hardware.published_tables import load_published_model
from splitgym.sim.published import PublishedMachine, simulate_published
from splitgym.sim.published_machine import MAX_BATCH_TOKENS
from splitgym.sim.rows import COMPLETED, IN_FLIGHT
from splitgym.workload.requests import Requests

H100, A100 = "h100-80gb", "a100-80gb"
LLAMA = "llama2-70b"
PROMPT, TOKEN, MIXED = (PublishedMachine(role, H100) for role in ("prompt", "token", "mixed"))

CASES = (
    "aa_45_25_bloom-176b.conv70",
    "bh_40_llama2-70b.conv70",
    "ha_25_26_llama2-70b.conv70",
    "hh_1_1_llama2-70b.code12",
    "hh_25_15_llama2-70b.conv70",
    "hh_2_1_bloom-176b.conv12",
    "hh_2_2_bloom-176b.code12",
    "hh_35_5_llama2-70b.code70",
    "hh_3_2_bloom-176b.conv12",
    "hh_3_2_llama2-70b.conv12",
    "hh_4_1_llama2-70b.code12",
)


def make_requests(*rows: tuple[float, int, int]) -> Requests:
    arrival_s, prompt_tokens, output_tokens = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    lengths = prompt_tokens.astype(np.int64), output_tokens.astype(np.int64)
    return Requests(arrival_s, *lengths, predicted_output_tokens=output_tokens)


def read_trace(path: Path) -> Requests:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        columns = ("arrival_s", "prompt_tokens", "output_tokens")
        return make_requests(*(tuple(float(row[c]) for c in columns) for row in csv.DictReader(lines)))


def read_case(name: str) -> tuple[list[PublishedMachine], str, str, list[int]]:
    """Machines, model and policy of a case, and each machine's number in its results."""
    kind, *counts, model = name.rsplit(".", 1)[0].split("_")
    if kind == "bh":
        num_machines = int(counts[0])
        return [MIXED] * num_machines, model, "jsq-tokens", list(range(num_machines))
    num_prompt, num_token = map(int, counts)
    hardware = {"h": H100, "a": A100}
    machines = [PublishedMachine("prompt", hardware[kind[0]])] * num_prompt
    machines += [PublishedMachine("token", hardware[kind[1]])] * num_token
    numbers = list(range(num_prompt + num_token))
    if kind == "ha":  # its configuration lists the A100s first
        numbers = numbers[num_token:] + numbers[:num_token]
    return machines, model, "splitwise", numbers


@pytest.mark.parametrize("case", CASES)
def test_reference_case_is_reproduced(shared: Path, case: str) -> None:
    folder = shared / "reference" / "splitwise-sim"
    machines, model, policy, numbers = read_case(case)
    requests = read_trace(folder / "traces" / f"{case.rsplit('.', 1)[1]}.csv.gz")
    rows = simulate_published(machines, model, requests, policy)
    assert np.all(rows.status == COMPLETED)

    expected = pq.read_table(folder / "results" / f"{case}.parquet").to_pydict()
    order = np.array(expected["request_id"])
    assert sorted(order) == list(range(len(requests)))
    # Equal to the last bit where this was written; 1e-9 s leaves room for another machine's arithmetic.
    close = {"rtol": 0.0, "atol": 1e-9}
    queue_s = rows.prompt_start_s - rows.arrival_s
    transfer_end_s = np.array(expected["transfer_end_s"], dtype=np.float64)
    np.testing.assert_allclose(rows.ttft_s[order], expected["ttft_s"], **close)
    np.testing.assert_allclose(rows.e2e_s[order], expected["e2e_s"], **close)
    np.testing.assert_allclose(queue_s[order], expected["queue_s"], **close)
    np.testing.assert_allclose(rows.transfer_end_s[order], transfer_end_s, **close)
    for actual, name in ((rows.prompt_machine, "prompt_machine"), (rows.token_machine, "token_machine")):
        expected_numbers = [int(machine.rsplit("_", 1)[1]) for machine in expected[name]]
        assert np.array(numbers)[actual[order]].tolist() == expected_numbers
    # Gaps add up to the token phase, so the largest is no smaller than their mean.
    assert np.all(rows.tbt_max_s >= rows.tbt_mean_s - 1e-9)


def test_one_request_by_hand() -> None:
    rows = simulate_published([PROMPT, TOKEN], LLAMA, make_requests((1.0, 512, 3)))
    latency = load_published_model(LLAMA).latency[H100]
    prompt_s, decode_s = latency.prompt_s(512), latency.decode_s(1)
    transfer_s = 512 * 2.5 / (200 * 1024)  # MiB over MiB/s
    assert transfer_s == 0.00625
    assert rows.prompt_start_s[0] == 1.0
    assert rows.first_token_s[0] == pytest.approx(1.0 + prompt_s, abs=1e-12)
    assert rows.transfer_end_s[0] == pytest.approx(1.0 + prompt_s + transfer_s, abs=1e-12)
    assert rows.finish_s[0] == pytest.approx(1.0 + prompt_s + transfer_s + 2 * decode_s, abs=1e-12)
    assert rows.tbt_max_s[0] == pytest.approx(transfer_s + decode_s, abs=1e-12)
    assert (rows.prompt_machine[0], rows.token_machine[0]) == (0, 1)


def test_an_arrival_cuts_a_block_at_the_end_of_the_iteration() -> None:
    latency = load_published_model(LLAMA).latency[H100]
    first_token_s, decode_s = latency.prompt_s(128), latency.decode_s(1)
    arrival_s = first_token_s + 2.5 * decode_s  # in the third of ten decodes

    rows = simulate_published([MIXED], LLAMA, make_requests((0.0, 128, 11), (arrival_s, 256, 2)), "jsq-tokens")
    start_s = first_token_s + 3 * decode_s
    mixed_s = 1.1 * latency.prompt_s(257)
    assert rows.prompt_start_s[1] == pytest.approx(start_s, abs=1e-12)
    assert rows.first_token_s[1] == pytest.approx(start_s + mixed_s, abs=1e-12)
    assert rows.finish_s[1] == pytest.approx(start_s + mixed_s + latency.decode_s(2), abs=1e-12)
    left = 10 - 3 - 1 - 1
    finish_s = start_s + mixed_s + latency.decode_s(2) + left * decode_s
    assert rows.finish_s[0] == pytest.approx(finish_s, abs=1e-12)
    assert rows.tbt_max_s[0] == pytest.approx(mixed_s, abs=1e-12)

    # A prompt longer than a batch does not cut by itself, but its decode, queued with it, is one token.
    long = MAX_BATCH_TOKENS + 1
    rows = simulate_published([MIXED], LLAMA, make_requests((0.0, 128, 11), (arrival_s, long, 2)), "jsq-tokens")
    assert rows.prompt_start_s[1] == pytest.approx(start_s, abs=1e-12)


def test_overloaded_pool_borrows_from_the_other_and_gives_back() -> None:
    busy = [(0.0, 8000, 2), (0.001, 8000, 2), (0.002, 8000, 2)]
    rows = simulate_published([PROMPT, TOKEN], LLAMA, make_requests(*busy, (60.0, 100, 2)))
    # The second waits behind the first; the third finds the queue long and takes the token machine.
    assert rows.prompt_machine.tolist() == [0, 0, 1, 0]
    assert rows.token_machine.tolist() == [1, 1, 1, 1]
    assert np.isnan(rows.transfer_end_s).tolist() == [False, False, True, False]


def test_one_token_ends_with_the_prompt_phase() -> None:
    requests = make_requests((0.0, 512, 1), (0.5, 100, 4), (0.6, 90_000, 1))
    rows = simulate_published([PROMPT, TOKEN], LLAMA, requests)
    assert np.all(rows.status == COMPLETED)
    assert rows.finish_s[[0, 2]].tolist() == rows.first_token_s[[0, 2]].tolist()
    assert np.isnan(rows.transfer_end_s[[0, 2]]).all()
    assert np.isnan(rows.tbt_max_s[[0, 2]]).all()
    assert rows.token_machine.tolist() == [0, 1, 0]


def test_no_requests() -> None:
    assert len(simulate_published([PROMPT, TOKEN], LLAMA, make_requests())) == 0


def test_machine_full_of_caches_that_cannot_grow_locks_up() -> None:
    # Each fits alone, two prompts fit together, and then neither has room for its output.
    pair = make_requests((0.0, 110_000, 100_000), (0.1, 90_000, 100_000))
    rows = simulate_published([MIXED], LLAMA, pair, "jsq-tokens")
    assert rows.status.tolist() == [IN_FLIGHT, IN_FLIGHT]
    assert np.isfinite(rows.first_token_s).all()


def random_requests(seed: int, num_requests: int, rate: float) -> Requests:
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate, num_requests)).round(1)  # ties
    prompt_tokens = np.clip(rng.lognormal(7, 1, num_requests), 1, 8000).astype(np.int64)
    output_tokens = np.clip(rng.lognormal(4, 1.2, num_requests), 1, 1000).astype(np.int64)
    return Requests(arrival_s, prompt_tokens, output_tokens, output_tokens.astype(np.float64))


@pytest.mark.parametrize("hardware", [A100, H100, "h100-80gb-pcap"])
@pytest.mark.parametrize("policy", ["splitwise", "jsq-tokens"])
def test_same_input_gives_the_same_rows(policy: str, hardware: str) -> None:
    roles = ("mixed",) * 4 if policy == "jsq-tokens" else ("prompt", "prompt", "token", "mixed")
    machines = [PublishedMachine(role, hardware) for role in roles]
    once, again = (simulate_published(machines, LLAMA, random_requests(7, 300, 8.0), policy) for _ in range(2))
    for field in fields(once):
        np.testing.assert_array_equal(getattr(once, field.name), getattr(again, field.name))
    assert np.all(once.status == COMPLETED)
    assert np.all(once.arrival_s <= once.prompt_start_s)
    assert np.all(once.prompt_start_s < once.first_token_s)
    assert np.all(once.first_token_s <= once.finish_s)


@pytest.mark.parametrize(
    ("machines", "model", "policy", "message"),
    [
        ([PROMPT, TOKEN], "bloom", "splitwise", "model: unknown 'bloom'; did you mean 'bloom-176b'"),
        ([PROMPT, TOKEN], LLAMA, "splitwize", "policy: unknown 'splitwize'; did you mean 'splitwise'"),
        ([], LLAMA, "splitwise", "machines: none"),
        ([PROMPT], LLAMA, "splitwise", "machines: none for the token phase"),
        ([TOKEN], LLAMA, "splitwise", "machines: none for the prompt phase"),
        ([MIXED, PROMPT], LLAMA, "jsq-tokens", r"machines\[1\].role: 'prompt'"),
        ([PublishedMachine("both", H100)], LLAMA, "splitwise", r"machines\[0\].role: unknown 'both'"),
        (
            [PROMPT, PublishedMachine("token", "h1OO-80gb")],
            LLAMA,
            "splitwise",
            r"machines\[1\].hardware: unknown 'h1OO-80gb'; did you mean 'h100-80gb'",
        ),
    ],
)
def test_mistakes_name_place_and_mend(machines: list[PublishedMachine], model: str, policy: str, message: str) -> None:
    with pytest.raises(SplitgymError, match=message):
        simulate_published(machines, model, make_requests((0.0, 10, 2)), policy)


def test_request_larger_than_a_machine() -> None:
    requests = make_requests((0.0, 10, 2), (1.0, 200_000, 20_000))
    with pytest.raises(SplitgymError, match=r"requests\[1\]: 220000 tokens; a machine holds 210645"):
        simulate_published([PROMPT, TOKEN], LLAMA, requests)
