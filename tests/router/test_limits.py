"""Keys, sizes, concurrency; malformed, huge and hostile requests."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitgym.router.ask import BadRequest, Reader
from splitgym.router.config import PredictionConfig
from tests.router.stack import MODEL, PROMPT, in_loop, said_to, stack

GOOD: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 4}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[1]", 400),
        (b"\xff\xfe", 400),
        (b'{"model": NaN}', 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
        (b"1" * 10_000, 400),
        (json.dumps(GOOD | {"model": "other"}).encode(), 404),
        (json.dumps(GOOD | {"model": ["x"]}).encode(), 404),
        (json.dumps(GOOD | {"prompt": ""}).encode(), 400),
        (json.dumps(GOOD | {"prompt": [1, "x"]}).encode(), 400),
        (json.dumps(GOOD | {"prompt": [True]}).encode(), 400),
        (json.dumps(GOOD | {"prompt": [[[1]]]}).encode(), 400),
        (json.dumps(GOOD | {"prompt": {"a": 1}}).encode(), 400),
        (json.dumps(GOOD | {"max_tokens": 0}).encode(), 400),
        (json.dumps(GOOD | {"max_tokens": "8"}).encode(), 400),
        (json.dumps(GOOD | {"max_tokens": 10**30}).encode(), 400),
        (json.dumps(GOOD | {"stream": "yes"}).encode(), 400),
        (json.dumps(GOOD | {"n": -1}).encode(), 400),
        (json.dumps(GOOD | {"kv_transfer_params": {"do_remote_prefill": True}}).encode(), 400),
        (json.dumps(GOOD | {"bootstrap_host": "10.0.0.1"}).encode(), 400),
        (json.dumps(GOOD | {"request_id": "another's"}).encode(), 400),
        (b" " * 5_000_000, 413),
    ],
)
def test_bad_bodies(body: bytes, status: int) -> None:
    @in_loop
    async def post() -> None:
        async with stack("mixed=1:h100-80gb") as s:
            async with s.client.post(s.url + "/v1/completions", data=body) as answer:
                assert (answer.status, "message" in (await answer.json())["error"]) == (status, True)
            assert (await s.complete(2)).said == said_to(PROMPT, 2)
            await s.at_rest()

    post()


def test_a_prompt_that_fits_nowhere() -> None:
    reader = Reader(MODEL, PredictionConfig(), 1000)
    with pytest.raises(BadRequest, match="about 1000 prompt tokens; the largest engine holds 1000"):
        reader.read("/v1/completions", json.dumps(GOOD | {"prompt": [1] * 1000}).encode())


@in_loop
async def test_an_engines_refusal_is_the_clients_and_frees_the_cache() -> None:
    """The prompt engine took it, the token engine does not: its memory is given back long before the lease ends."""
    async with stack("prompt=1:h100-80gb,token=1:h100-80gb", engine_lease_s=1e6) as s:
        too_long = s.fleet.engine("token-1").capacity
        answer = await s.complete(too_long)
        assert answer.status == 400 and "maximum context length" in answer.json["error"]["message"]
        assert s.retries == 0
        await s.at_rest()


@in_loop
async def test_keys() -> None:
    async with stack(client_keys=("mine", "yours"), admin_key="admin") as s:
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer other"}, 401),
            ({"Authorization": "Basic mine"}, 401),
            ({"Authorization": "Bearer admin"}, 401),
            ({"Authorization": "Bearer mine"}, 200),
        ):
            assert (await s.post("/v1/completions", GOOD, **headers)).status == status
            assert (await s.get("/v1/models", **headers)).status == status
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer mine"}, 401),
            ({"Authorization": "Bearer admin"}, 200),
        ):
            assert (await s.get("/admin/engines", **headers)).status == status
        assert (await s.get("/health")).status == 200


@pytest.mark.parametrize("has_keys", [False, True])
@in_loop
async def test_authorization_reaches_the_engines_unless_it_is_the_routers(has_keys: bool) -> None:
    async with stack("mixed=1:h100-80gb", client_keys=("mine",) if has_keys else ()) as s:
        api = s.fleet["mixed-0"].api
        understand, seen = api._understand, []

        def heard(body, request):  # type: ignore[no-untyped-def]
            seen.append((request.headers.get("authorization"), request.headers.get("x-evil")))
            return understand(body, request)

        api._understand = heard
        headers = {"Authorization": "Bearer mine", "X-Evil": "yes", "X-Request-Id": "mine"}
        answer = await s.post("/v1/completions", GOOD, **headers)
        assert answer.status == 200 and answer.headers["x-request-id"] != "mine"
        assert seen == [(None if has_keys else "Bearer mine", None)]


@in_loop
async def test_one_client_has_so_many_requests_and_others_their_own() -> None:
    limits = {"requests_per_client": 2}
    async with stack(scale=5.0, limits=limits, client_keys=("mine", "yours")) as s:
        mine, yours = {"Authorization": "Bearer mine"}, {"Authorization": "Bearer yours"}
        running = [asyncio.create_task(s.post("/v1/completions", GOOD, **mine)) for _ in range(2)]
        await asyncio.sleep(0.02)
        answer = await s.post("/v1/completions", GOOD, **mine)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert (await s.post("/v1/completions", GOOD, **yours)).status == 200
        assert [answer.status for answer in await asyncio.gather(*running)] == [200, 200]
        assert (await s.post("/v1/completions", GOOD, **mine)).status == 200
        await s.at_rest()


@in_loop
async def test_headers_and_slow_bodies() -> None:
    async with stack(limits={"header_bytes": 2048, "body_timeout_s": 0.2}) as s:
        assert (await s.post("/v1/completions", GOOD, **{"X-Long": "x" * 3000})).status == 431
        reader, writer = await asyncio.open_connection("127.0.0.1", int(s.url.rpartition(":")[2]))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b"408" in await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        await s.at_rest()


@in_loop
async def test_nothing_a_client_says_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    evil = "\r\nX-Injected: 1\x1b[31m%s${jndi}"
    with caplog.at_level(logging.DEBUG):
        async with stack() as s:
            await s.post("/v1/completions", GOOD | {"user": evil, "model": evil})
            await s.complete(2, user=evil)
            await s.get("/" + evil.replace("\r\n", "%0d%0a"))
    ours = [record for record in caplog.records if record.name.startswith("splitgym")]
    assert not any("njected" in record.getMessage() for record in ours)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["model", "prompt", "messages", "max_tokens", "max_completion_tokens", "stream", "n", "best_of", "echo"]
BODIES = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5)


@given(BODIES, st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_body_is_an_ask_or_a_bad_request(body: dict[str, Any], is_chat: bool, named: bool) -> None:
    reader = Reader(MODEL, PredictionConfig(), 10_000)
    if named:
        body = body | {"model": MODEL, "prompt": [1, 2], "messages": [{"role": "user", "content": body.get("prompt")}]}
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    try:
        ask = reader.read(path, json.dumps(body).encode("utf-8", "replace"))
    except BadRequest as error:
        assert 400 <= error.status < 500
    else:
        assert json.loads(ask.as_asked()) == body
        assert json.loads(ask.prompt_phase())["stream"] is False
        assert ask.prompt_tokens >= 1 and ask.predicted_output_tokens >= 1


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5), st.integers(0, 2))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_bytes_that_are_no_http(lines: list[bytes], cut: int) -> None:
    """Whatever comes in at the socket, the router goes on serving."""

    @in_loop
    async def throw() -> None:
        async with stack("mixed=1:h100-80gb", limits={"body_timeout_s": 0.2}) as s:
            starts = (
                b"",
                b"POST /v1/completions HTTP/1.1\r\n",
                b"POST /v1/completions HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
            )
            _, writer = await asyncio.open_connection("127.0.0.1", int(s.url.rpartition(":")[2]))
            writer.write(starts[cut] + b"\r\n".join(lines) + b"\r\n\r\n")
            await asyncio.sleep(0.01)
            writer.close()
            assert (await s.complete(2)).said == said_to(PROMPT, 2)
            await s.at_rest()

    throw()


@in_loop
async def test_a_client_that_reads_slowly_holds_up_nobody() -> None:
    async with stack("mixed=1:h100-80gb") as s:
        body = GOOD | {"stream": True, "max_tokens": 2000}
        async with s.client.post(s.url + "/v1/completions", json=body) as slow:
            await slow.content.readany()
            assert (await s.complete(4)).said == said_to(PROMPT, 4)
        await s.at_rest()
