"""What a client asks for: a body, checked as far as the router must understand it, and what is sent on of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from splitgym.router.config import PredictionConfig
from splitgym.workload.prediction import OutputPredictor

_PHASE_FIELDS = (
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "min_completion_tokens",
)
"""Fields in which the two phases of a request differ."""

_ROUTER_FIELDS = (
    "kv_transfer_params",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "data_parallel_rank",
    "request_id",
    "rid",
)
"""Fields by which engines are told what to do with each other's memory: only the router may set them."""

_ONE_MACHINE_FIELDS = ("use_beam_search", "prompt_logprobs", "echo", "suffix")
_LARGEST_COUNT = 1_000_000_000


class BadRequest(Exception):  # noqa: N818
    """The client's mistake, with the status code it gets."""

    def __init__(self, status: int, message: str, code: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Ask:
    """A request that may be sent on."""

    path: str
    streams: bool  # whether the client wants events
    one_machine: bool  # whether its cache cannot be sent: several prompts or choices, or what looks at the prompt
    prompt_tokens: int
    predicted_output_tokens: float
    phase_fields: dict[str, Any]  # as the client gave them
    _rest: str  # the body's other fields, as JSON without its last brace

    @property
    def is_chat(self) -> bool:
        """Whether it is a chat."""
        return self.path.endswith("/chat/completions")

    @property
    def is_relayed_whole(self) -> bool:
        """Whether the answer is passed on as one piece, not made of events."""
        return self.one_machine and not self.streams

    def as_asked(self, **fields: Any) -> bytes:
        """The body with the client's fields, and ``fields`` over them."""
        return self._with(self.phase_fields | fields)

    def streamed(self, **fields: Any) -> bytes:
        """The body of a call whose answer is events; with the usage, where the client wants it all at once."""
        asked = {"stream": True} | ({} if self.streams else {"stream_options": {"include_usage": True}})
        return self._with(self.phase_fields | asked | fields)

    def prompt_phase(self, **fields: Any) -> bytes:
        """The body of a call that processes the prompt and gives one token."""
        return self._with({"max_completion_tokens" if self.is_chat else "max_tokens": 1, "stream": False} | fields)

    def _with(self, fields: dict[str, Any]) -> bytes:
        separator = ", " if len(self._rest) > 1 else ""
        return f"{self._rest}{separator}{json.dumps(fields)[1:]}".encode() if fields else f"{self._rest}}}".encode()


class Reader:
    """Makes asks of bodies.

    Args:
        model: the only one that is served.
        prediction: of lengths.
        most_tokens: KV tokens that the largest engine holds.
    """

    def __init__(self, model: str, prediction: PredictionConfig, most_tokens: int) -> None:
        self._model = model
        self._prediction = prediction
        self._most_tokens = most_tokens
        edges = np.array(prediction.prompt_edges_tokens, dtype=np.float64)
        self._predictor = OutputPredictor(edges, np.array(prediction.mean_output_tokens, dtype=np.float64))

    def read(self, path: str, content: bytes) -> Ask:
        """The ask in a body.

        Raises:
            BadRequest: if it is not one.
        """
        body = _parse(content)
        model = body.get("model")
        if model != self._model:
            raise BadRequest(404, f"model: not served here; ask for {self._model!r}", "model_not_found")
        for name in _ROUTER_FIELDS:
            if name in body:
                raise BadRequest(400, f"{name}: set by the router; leave it out")
        is_chat = path.endswith("/chat/completions")
        tokens, several = self._measure_chat(body) if is_chat else self._measure_prompt(body)
        if tokens >= self._most_tokens:
            message = f"about {tokens} prompt tokens; the largest engine holds {self._most_tokens}"
            raise BadRequest(400, message, "context_length_exceeded")
        streams = body.get("stream")
        if streams not in (None, True, False):
            raise BadRequest(400, "stream: give true or false")
        choices = max(_count(body, "n", 1), _count(body, "best_of", 1))
        one_machine = several or choices > 1 or any(body.get(name) for name in _ONE_MACHINE_FIELDS)
        phase_fields = {name: body.pop(name) for name in _PHASE_FIELDS if name in body}
        return Ask(
            path=path,
            streams=bool(streams),
            one_machine=one_machine or "prompt_logprobs" in body,
            prompt_tokens=tokens,
            predicted_output_tokens=self._predict(tokens, phase_fields) * choices,
            phase_fields=phase_fields,
            _rest=json.dumps(body)[:-1],
        )

    def _predict(self, prompt_tokens: int, fields: dict[str, Any]) -> float:
        predicted = float(self._predictor.predict(np.array([prompt_tokens]))[0])
        for name in ("max_tokens", "max_completion_tokens"):
            most = _count(fields, name, None)
            if most is not None and self._prediction.cap_at_max_tokens:
                predicted = min(predicted, most)
        return max(predicted, 1.0)

    def _measure_prompt(self, body: dict[str, Any]) -> tuple[int, bool]:
        """Tokens, and whether there are several prompts."""
        prompt = body.get("prompt")
        if isinstance(prompt, str) and prompt:
            return self._tokens_in(prompt), False
        if isinstance(prompt, list) and prompt:
            if all(type(token) is int and 0 <= token < _LARGEST_COUNT for token in prompt):
                return len(prompt), False
            parts = [self._measure_prompt({"prompt": part}) for part in prompt if isinstance(part, str | list)]
            if len(parts) == len(prompt) and not any(several for _, several in parts):
                return sum(tokens for tokens, _ in parts), True
        raise BadRequest(400, "prompt: give a text, a list of tokens, or a list of these")

    def _measure_chat(self, body: dict[str, Any]) -> tuple[int, bool]:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
            raise BadRequest(400, "messages: give a list of messages")
        contents = [[message.get("role"), message.get("content")] for message in messages]
        return self._tokens_in(json.dumps(contents)), False

    def _tokens_in(self, text: str) -> int:
        return max(int(-(-len(text.encode("utf-8", "replace")) // self._prediction.bytes_per_token)), 1)


def _parse(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise BadRequest(400, "the body is not JSON; send an object") from None
    if not isinstance(body, dict):
        raise BadRequest(400, "the body is not a JSON object; send one")
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _count(body: dict[str, Any], name: str, default: Any) -> Any:
    """A whole number from 1 on, or ``default``."""
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not 1 <= value < _LARGEST_COUNT:
        raise BadRequest(400, f"{name}: give a whole number from 1 on")
    return value
