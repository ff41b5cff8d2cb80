"""What one client may do: who it is, how much it may send, how much at a time."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from splitgym.router.ask import BadRequest
from splitgym.router.config import LimitsConfig


class Limits:
    """Keys, sizes and concurrency.

    Args:
        config: the limits.
        client_keys: who may ask; everybody where there are none.
        admin_key: who may use the admin interface; nobody if ``None``.
    """

    def __init__(self, config: LimitsConfig, client_keys: tuple[str, ...], admin_key: str | None) -> None:
        self._config = config
        self._client_digests = {_digest(key) for key in client_keys}
        self._admin_digest = None if admin_key is None else _digest(admin_key)
        self._running: Counter[str] = Counter()

    @property
    def keys_are_ours(self) -> bool:
        """Whether a client's key is the router's, and so not for the engines."""
        return bool(self._client_digests)

    @property
    def clients(self) -> int:
        """How many clients have a request here."""
        return len(self._running)

    def check_headers(self, request: Request) -> None:
        """Refuse headers that are too long.

        Raises:
            BadRequest: 431.
        """
        size = sum(len(name) + len(value) for name, value in request.scope["headers"])
        if size > self._config.header_bytes:
            raise BadRequest(431, f"headers of {size} bytes; send {self._config.header_bytes} at most")

    def identify(self, request: Request) -> str:
        """Who asks: its key's digest, or its address.

        Raises:
            BadRequest: 401 without a key that is known.
        """
        if not self._client_digests:
            return request.client.host if request.client else ""
        digest = _digest(_bearer(request))
        if digest not in self._client_digests:
            raise BadRequest(401, "Authorization: no key that is known here; send 'Bearer KEY'", "invalid_api_key")
        return digest

    def check_admin(self, request: Request) -> None:
        """Let only the admin in.

        Raises:
            BadRequest: 401, or 404 where there is no admin interface.
        """
        if self._admin_digest is None:
            raise BadRequest(404, "no admin interface; set admin_key in the configuration")
        if _digest(_bearer(request)) != self._admin_digest:
            raise BadRequest(401, "Authorization: not the admin's key; send 'Bearer KEY'", "invalid_api_key")

    async def read_body(self, request: Request) -> bytes:
        """The body.

        Raises:
            BadRequest: 413 if it is too long, 408 if it comes too slowly, 499 if the client goes.
        """
        most = self._config.body_bytes
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > most:
            raise BadRequest(413, f"body: more than {most} bytes; send less")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise BadRequest(413, f"body: more than {most} bytes; send less")
                    parts.append(part)
        except TimeoutError:
            raise BadRequest(408, f"body: not here after {self._config.body_timeout_s:g} s; send it faster") from None
        except ClientDisconnect:
            raise BadRequest(499, "the client has gone") from None
        return b"".join(parts)

    @contextmanager
    def one_more(self, client: str) -> Iterator[None]:
        """A place for one more request of ``client``.

        Raises:
            BadRequest: 429 if it has no more.
        """
        if self._running[client] >= self._config.requests_per_client:
            most = self._config.requests_per_client
            raise BadRequest(429, f"{most} requests at a time; wait for one to end", "rate_limit_exceeded")
        self._running[client] += 1
        try:
            yield
        finally:
            self._running[client] -= 1
            if not self._running[client]:
                del self._running[client]


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> str:
    """Digests are compared, so that the time a comparison takes tells nothing of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
