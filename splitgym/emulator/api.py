"""vLLM's HTTP interface over one emulated engine, with the behaviour on mistakes that was seen with vLLM 0.32."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from splitgym.emulator.engine import Engine, Sequence
from splitgym.emulator.handover import Handover, PeerUnreachable
from splitgym.emulator.text import count_tokens, digest_of, prompt_of, token_text

_Result = TypeVar("_Result")

VLLM_DEFAULT_TOKENS = 16


_CORE_DIED, _ABORTED = -1, -2
"""In place of a token's index."""


class ClientGone(Exception):  # noqa: N818
    """The client has closed its connection."""


class Aborted(Exception):  # noqa: N818
    """The engine has been told to end, and leaves the request unfinished."""


class CoreDied(Exception):  # noqa: N818
    """The engine's core has ended while its server lives."""

    def __init__(self) -> None:
        super().__init__("the engine's core has ended")


@dataclass(frozen=True)
class Job:
    """A request as the interface understands it."""

    body: dict[str, Any]
    is_chat: bool
    sequence: Sequence
    request_id: str
    model: str
    prompt_tokens: int


class Api:
    """The routes of one engine.

    Args:
        engine: which.
        handover: how caches get from one engine to another.
        model: the name it serves under.
        crash: ends the engine's core.
    """

    def __init__(self, engine: Engine, handover: Handover, model: str, crash: Callable[[], None]) -> None:
        self.engine = engine
        self.model = model
        self.metrics_are_blind = False
        self._handover = handover
        self._crash = crash
        self._open: set[Sequence] = set()
        self._is_dead = False
        self.app = Starlette(
            routes=[
                Route("/v1/completions", self.generate, methods=["POST"]),
                Route("/v1/chat/completions", self.generate, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/health", self.health),
                Route("/metrics", self.metrics),
                Route("/pd_role_switch", self.switch_role, methods=["POST"]),
            ]
        )

    def core_died(self) -> None:
        """Tell everybody who waits for a token."""
        self._is_dead = True
        for sequence in self._open:
            sequence.tokens.put_nowait(_CORE_DIED)

    def abort_all(self) -> None:
        """End what runs as if it were complete, but for the reason given."""
        for sequence in self._open:
            sequence.tokens.put_nowait(_ABORTED)

    async def models(self, request: Request) -> Response:
        """``/v1/models``."""
        return JSONResponse({"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "vllm"}]})

    async def health(self, request: Request) -> Response:
        """``/health``; a hung engine does not answer."""
        await self.engine.free_to_run.wait()
        return Response()

    async def metrics(self, request: Request) -> Response:
        """``/metrics``: those that a router reads."""
        if self.metrics_are_blind:
            return PlainTextResponse("no metrics", 500)
        engine = self.engine
        values = {
            "vllm:num_requests_running": len(engine.decodes) + len(engine.running_prompts),
            "vllm:num_requests_waiting": len(engine.queue) + engine.coming,
            "vllm:kv_cache_usage_perc": engine.kv_held / engine.capacity,
            "vllm:num_preemptions_total": 0,
        }
        label = json.dumps(self.model)
        text = "".join(f"{name}{{model_name={label}}} {float(value)}\n" for name, value in values.items())
        return PlainTextResponse(text)

    async def switch_role(self, request: Request) -> Response:
        """SGLang's ``/pd_role_switch``: refused unless idle."""
        role = (await request.json()).get("new_role")
        if role not in ("prefill", "decode") or not self.engine.is_idle:
            return JSONResponse({"success": False, "message": "unknown role, or not idle"}, 400)
        self._handover.modes[self.engine.engine_id] = role
        return JSONResponse({"success": True, "message": ""})

    async def generate(self, request: Request) -> Response:
        """A completion or a chat."""
        try:
            job = self._understand(await request.json(), request)
            self.engine.check_fits(job.sequence)
        except (ValueError, UnicodeDecodeError) as error:
            return _error(400, str(error))
        params = job.body.get("kv_transfer_params") or {}
        if params.get("do_remote_prefill") and params.get("remote_engine_id") is None:
            self._crash()  # as seen with vLLM 0.32
        if job.body.get("stream"):  # the status is sent before anything is known
            return StreamingResponse(self._stream(job), media_type="text/event-stream")
        try:
            return JSONResponse(await _unless_gone(request, self._whole(job)))
        except (PeerUnreachable, CoreDied) as error:
            return _error(500, str(error))
        except ValueError as error:
            return _error(400, str(error))
        except ClientGone:
            return Response(status_code=499)

    def _understand(self, body: Any, request: Request) -> Job:
        if not isinstance(body, dict):
            raise ValueError("the body must be an object")
        if body.get("n", 1) != 1:
            raise ValueError("n: an emulated engine gives one choice")
        is_chat = request.url.path.endswith("/chat/completions")
        if is_chat != ("messages" in body):
            raise ValueError("messages: needed for a chat, and for nothing else")
        prompt = prompt_of(body)
        most = body.get("max_tokens")
        most = body.get("max_completion_tokens", most) if is_chat else most
        output_tokens = VLLM_DEFAULT_TOKENS if most is None else most
        if type(output_tokens) is not int or output_tokens < 1:
            raise ValueError(f"max_tokens: {output_tokens!r}; give a whole number from 1 on")
        tokens = count_tokens(prompt)
        keeps = bool((body.get("kv_transfer_params") or {}).get("do_remote_decode"))
        sequence = Sequence(tokens, output_tokens, digest_of(prompt), keep_cache=keeps and output_tokens == 1)
        prefix = "chatcmpl-" if is_chat else "cmpl-"
        request_id = prefix + (request.headers.get("x-request-id") or f"{sequence.number}")
        return Job(body, is_chat, sequence, request_id, self.model, tokens)

    async def _whole(self, job: Job) -> dict[str, Any]:
        text, reason = "", "length"
        async with aclosing(self._texts(job)) as texts:
            try:
                async for more in texts:
                    text += more
            except Aborted:
                reason = "abort"
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
        choice |= {"message": {"role": "assistant", "content": text}} if job.is_chat else {"text": text}
        answer = _head(job, "chat.completion" if job.is_chat else "text_completion")
        answer |= {"choices": [choice], "usage": _usage(job)}
        if job.sequence.lease is not None:
            answer["kv_transfer_params"] = self._handover.params_of(self.engine, job.sequence.lease)
        return answer

    async def _stream(self, job: Job) -> AsyncIterator[str]:
        """Server-sent events; a streamed prompt phase hands out no parameters."""
        head = json.dumps(_head(job, "chat.completion.chunk" if job.is_chat else "text_completion"))[:-1]
        left = -1
        try:
            async with aclosing(self._texts(job)) as texts:
                async for text in texts:
                    if left < 0:
                        left = job.sequence.output_tokens
                        if job.is_chat:
                            delta = '{"delta": {"role": "assistant", "content": ""}, "index": 0, "finish_reason": null}'
                            yield f'data: {head}, "choices": [{delta}]}}\n\n'
                    left -= 1
                    text = json.dumps(text)
                    said = f'"delta": {{"content": {text}}}' if job.is_chat else f'"text": {text}'
                    end = "null" if left else '"length"'
                    choice = f'{{"index": 0, {said}, "logprobs": null, "finish_reason": {end}}}'
                    yield f'data: {head}, "choices": [{choice}]}}\n\n'
            if (job.body.get("stream_options") or {}).get("include_usage"):
                yield f'data: {head}, "choices": [], "usage": {json.dumps(_usage(job))}}}\n\n'
        except Aborted:
            said = '"delta": {"content": ""}' if job.is_chat else '"text": ""'
            choice = f'{{"index": 0, {said}, "logprobs": null, "finish_reason": "abort"}}'
            yield f'data: {head}, "choices": [{choice}]}}\n\n'
        except (PeerUnreachable, CoreDied, ValueError) as error:
            yield f"data: {json.dumps(_error_body(500, str(error)))}\n\n"
        yield "data: [DONE]\n\n"

    async def _texts(self, job: Job) -> AsyncGenerator[str]:
        """The output's tokens; leaving it early aborts the request.

        Raises:
            PeerUnreachable: if its cache cannot be fetched.
            CoreDied: if the engine's core ends.
            Aborted: if the engine is told to end.
            ValueError: if it does not fit, or its parameters are malformed.
        """
        sequence = job.sequence
        self._open.add(sequence)
        try:
            if self._is_dead:
                raise CoreDied
            await self._handover.start(self.engine, sequence, job.body)
            for _ in range(sequence.output_tokens):
                index = await sequence.tokens.get()
                if index == _CORE_DIED:
                    raise CoreDied
                if index == _ABORTED:
                    raise Aborted
                yield token_text(sequence.digest, index)
        finally:
            self._open.discard(sequence)
            self.engine.abort(sequence)


async def _unless_gone(request: Request, work: Awaitable[_Result]) -> _Result:
    """The result of ``work``, which is cancelled when the client closes its connection.

    Raises:
        ClientGone: then.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


def _head(job: Job, kind: str) -> dict[str, Any]:
    return {"id": job.request_id, "object": kind, "created": int(time.time()), "model": job.model}


def _usage(job: Job) -> dict[str, int]:
    done = job.sequence.output_tokens
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": done,
        "total_tokens": job.prompt_tokens + done,
    }


def _error(status: int, message: str) -> Response:
    return JSONResponse(_error_body(status, message), status)


def _error_body(status: int, message: str) -> dict[str, Any]:
    kind = "BadRequestError" if status < 500 else "InternalServerError"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
