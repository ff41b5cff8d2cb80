"""One answer made of a stream's events, for clients that want it all at once.

Engines are always asked for a stream: only so is it known that the first token came while the cache was still there,
and how far a request has come.
"""

from __future__ import annotations

import json
from typing import Any

_REPLACED = ("finish_reason", "stop_reason", "role", "id", "type")


class Assembly:
    """Takes events, gives the answer.

    Args:
        is_chat: whether they are a chat's.
    """

    def __init__(self, is_chat: bool) -> None:
        self._is_chat = is_chat
        self._answer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, events: bytes) -> None:
        """Take in whole events.

        Raises:
            ValueError: if one is malformed, or an error.
        """
        for line in events.split(b"\n"):
            if not line.startswith(b"data: ") or line == b"data: [DONE]":
                continue
            event = json.loads(line[6:])
            if not isinstance(event, dict) or "error" in event or event.get("object") == "error":
                raise ValueError("an error event")
            for choice in event.pop("choices", None) or []:
                known = self._choices.setdefault(choice.get("index", 0), {})
                _merge(known, choice)
            self._answer.update({name: value for name, value in event.items() if value is not None})

    def answer(self) -> bytes:
        """The answer as JSON."""
        choices = [self._finished(self._choices[index]) for index in sorted(self._choices)]
        answer = self._answer | {"choices": choices}
        answer["object"] = "chat.completion" if self._is_chat else "text_completion"
        answer.pop("kv_transfer_params", None)
        return json.dumps(answer).encode()

    def _finished(self, choice: dict[str, Any]) -> dict[str, Any]:
        if self._is_chat:
            delta = choice.pop("delta", {})
            choice["message"] = {"role": "assistant", "content": None} | delta
            for call in choice["message"].get("tool_calls") or []:
                call.pop("index", None)
        return {"logprobs": None, "finish_reason": None} | choice


def _merge(known: dict[str, Any], more: dict[str, Any]) -> None:
    """Texts grow, lists grow (tool calls by their index), the rest is replaced by what is not null."""
    for name, value in more.items():
        old = known.get(name)
        if old is None or name in _REPLACED or value is None:
            if value is not None or name not in known:
                known[name] = value
        elif isinstance(old, str) and isinstance(value, str):
            known[name] = old + value
        elif isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            for item in value:
                _merge_item(old, item)
        else:
            known[name] = value


def _merge_item(items: list[Any], item: Any) -> None:
    index = item.get("index") if isinstance(item, dict) else None
    same = next((old for old in items if index is not None and old.get("index") == index), None)
    if same is None:
        items.append(item)
    else:
        _merge(same, item)
