"""Small parts: pages of metrics, answers made of events, whole events, asks."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitgym.router.ask import Reader
from splitgym.router.assemble import Assembly
from splitgym.router.config import PredictionConfig
from splitgym.router.flow import _tokens_in
from splitgym.router.protocols.base import _cut, _error_at
from splitgym.router.telemetry import read_metrics


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (b"", None),
        (b"vllm:num_requests_running 3\n", None),
        (b"vllm:num_requests_running 3\nvllm:kv_cache_usage_perc 0.25\n", (3.0, 0.0, 0.25)),
        (
            b'# HELP vllm:num_requests_running x\nvllm:num_requests_running{engine="0",model_name="a}b"} 3.0\n'
            b'vllm:num_requests_running{engine="1"} 4.0\nvllm:num_requests_waiting{engine="0"} 2e0\n'
            b'vllm:gpu_cache_usage_perc{engine="0"} 0.1\nvllm:gpu_cache_usage_perc{engine="1"} 0.3 1700000000\n',
            (7.0, 2.0, 0.3),
        ),
        (b"sglang:num_running_reqs 5\nsglang:num_queue_reqs 1\nsglang:token_usage 0.5\n", (5.0, 1.0, 0.5)),
        (b"vllm:num_requests_running -1\nvllm:kv_cache_usage_perc 7\n", (0.0, 0.0, 1.0)),
        (b"vllm:num_requests_running e\nvllm:kv_cache_usage_perc 0.1\n", None),
    ],
)
def test_read_metrics(page: bytes, expected: tuple[float, float, float] | None) -> None:
    assert read_metrics(page) == expected


def events(*parts: dict[str, object]) -> bytes:
    return b"".join(b"data: " + json.dumps(part).encode() + b"\n\n" for part in parts) + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("last", "where"),
    [
        ({"error": {"message": "x"}}, "at"),
        ({"object": "error", "message": "x"}, "at"),
        ({"choices": [{"text": "", "finish_reason": "abort"}]}, "at"),
        ({"choices": [{"text": 'data: {"error" "finish_reason": "abort"', "finish_reason": "stop"}]}, "nowhere"),
        ({"choices": [{"text": "abort", "finish_reason": None}], "error": None}, "nowhere"),
    ],
)
def test_where_an_answer_is_known_to_be_incomplete(last: dict[str, object], where: str) -> None:
    """Compact JSON or not; never for what a text says."""
    for separators in ((", ", ": "), (",", ":")):
        parts = [f"data: {json.dumps(part, separators=separators)}\n\n" for part in ({"choices": []}, last)]
        found = _error_at("".join(parts).encode())
        assert found == (len(parts[0]) if where == "at" else -1)


def test_tools_and_several_choices_are_put_together() -> None:
    def delta(index: int, **fields: object) -> dict[str, object]:
        return {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": index, "delta": fields}]}

    def call(**function: str) -> dict[str, object]:
        return {"index": 0, "function": function}

    assembly = Assembly(is_chat=True)
    assembly.add(events(delta(1, role="assistant", content="b"), delta(0, role="assistant", content=None)))
    assembly.add(events(delta(0, tool_calls=[call(name="f", arguments="{") | {"id": "c1", "type": "function"}])))
    assembly.add(events(delta(0, tool_calls=[call(arguments="}")]), delta(1, content="c", reasoning_content="r")))
    assembly.add(events({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}))
    assembly.add(events({"choices": [], "usage": {"total_tokens": 3}}))
    answer = json.loads(assembly.answer())
    first, second = answer["choices"]
    function = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert first["message"] == {"role": "assistant", "content": None, "tool_calls": [function]}
    assert first["finish_reason"] == "tool_calls"
    assert second["message"] == {"role": "assistant", "content": "bc", "reasoning_content": "r"}
    assert (answer["object"], answer["usage"]) == ("chat.completion", {"total_tokens": 3})


def test_logprobs_grow() -> None:
    def part(text: str) -> dict[str, object]:
        return {"choices": [{"index": 0, "text": text, "logprobs": {"tokens": [text], "token_logprobs": [-1.0]}}]}

    assembly = Assembly(is_chat=False)
    assembly.add(events(part("a"), part("b")))
    choice = json.loads(assembly.answer())["choices"][0]
    assert (choice["text"], choice["logprobs"]) == ("ab", {"tokens": ["a", "b"], "token_logprobs": [-1.0, -1.0]})


@pytest.mark.parametrize("event", [{"error": {"message": "no"}}, {"object": "error", "message": "no"}])
def test_error_events_are_no_answer(event: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="error event"):
        Assembly(is_chat=True).add(events(event))


@given(st.lists(st.binary(max_size=12), max_size=8))
def test_cut_gives_whole_events_and_loses_nothing(chunks: list[bytes]) -> None:
    held, out = b"", b""
    for chunk in chunks:
        held, whole = _cut(held + chunk)
        assert not whole or whole.endswith(b"\n\n")
        assert b"\n\n" not in held
        out += whole
    assert out + held == b"".join(chunks)


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        (b'data: {"id": 1, "choices": [{"index": 0, "text": "a"}]}\n\n', 1),
        (b'data: {"choices":[{"text":"a"}]}\n\ndata: {"choices":[{"text":"\\"choices\\":"}]}\n\n', 2),
        (b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n', 0),
        (b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n', 0),
        (b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n', 1),
    ],
)
def test_tokens_are_counted(part: bytes, tokens: int) -> None:
    assert _tokens_in(part) == tokens


def test_predictions() -> None:
    steps = PredictionConfig(prompt_edges_tokens=(100.0,), mean_output_tokens=(20.0, 300.0))

    def predicted(prompt_tokens: int, config: PredictionConfig = steps, **fields: int) -> float:
        body = {"model": "m", "prompt": [1] * prompt_tokens} | fields
        return Reader("m", config, 10_000).read("/v1/completions", json.dumps(body).encode()).predicted_output_tokens

    assert (predicted(100), predicted(101)) == (20.0, 300.0)
    assert (predicted(101, max_tokens=8), predicted(50, max_tokens=400), predicted(50, n=3)) == (8.0, 20.0, 60.0)
    assert predicted(101, steps.model_copy(update={"cap_at_max_tokens": False}), max_tokens=8) == 300.0


def test_text_is_counted_by_its_bytes() -> None:
    reader = Reader("m", PredictionConfig(bytes_per_token=4.0), 10_000)
    for prompt, tokens in (("abcd", 1), ("abcde", 2), ("ééé", 2), (["abcd", "abcde"], 3), ([[1, 2], [3]], 3)):
        ask = reader.read("/v1/completions", json.dumps({"model": "m", "prompt": prompt}).encode())
        assert (ask.prompt_tokens, ask.one_machine) == (tokens, isinstance(prompt, list))
