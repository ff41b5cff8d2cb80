"""What an emulated engine says: tokens that follow from the prompt, so that wrong ones can be told from right ones."""

from __future__ import annotations

import json
import zlib
from typing import Any

BYTES_PER_TOKEN = 4
"""An emulated tokenizer: prompts given as text have a token for each four bytes."""


def prompt_of(body: dict[str, Any]) -> str | list[int]:
    """The prompt of a completion's or chat's body, as one text or a list of tokens.

    Raises:
        ValueError: if there is none that an emulated engine understands.
    """
    prompt = body.get("prompt")
    if "messages" in body:
        messages = body["messages"]
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise ValueError("messages: give a list of messages")
        return json.dumps([[message.get("role"), message.get("content")] for message in messages])
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    raise ValueError("prompt: give a text or a list of tokens")


def count_tokens(prompt: str | list[int]) -> int:
    """How many tokens a prompt has."""
    return len(prompt) if isinstance(prompt, list) else -(-len(prompt.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def digest_of(prompt: str | list[int]) -> int:
    """What the tokens after a prompt follow from."""
    return zlib.crc32(repr(prompt).encode("utf-8", "backslashreplace"))


def wrong(digest: int) -> int:
    """What tokens follow from where the KV-cache is another request's."""
    return digest ^ 0x5A5A5A5A


def token_text(digest: int, index: int) -> str:
    """The text of output token ``index``."""
    return f" {zlib.crc32(index.to_bytes(4, 'little'), digest):08x}"


def expected_text(prompt: str | list[int], num_tokens: int) -> str:
    """The output to a prompt."""
    digest = digest_of(prompt)
    return "".join(token_text(digest, index) for index in range(num_tokens))


def chat_prompt(*messages: tuple[str, str]) -> str:
    """The prompt that (role, content) pairs make."""
    return json.dumps([list(message) for message in messages])
