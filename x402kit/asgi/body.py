"""Request bodies: read under a limit when the price or the claim needs them, and handed on unchanged."""

from __future__ import annotations

import asyncio
import hashlib

from starlette.types import Message, Receive

from ..errors import BodyTooLarge, RequestTimeout

__all__ = ["Disconnected", "Watched", "body_digest", "read_body", "replay_body"]


class Disconnected(Exception):  # not a fault: nobody is there to answer
    """The caller left while its body was read; nothing was settled."""


async def read_body(receive: Receive, limit: int, seconds: float) -> bytes:
    """The whole body. Raises ``BodyTooLarge`` (K01), ``RequestTimeout`` (K02), ``Disconnected``."""
    body = bytearray()  # a list of small parts would take twenty times their size
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                part: bytes = message.get("body", b"")
                if len(body) + len(part) > limit:
                    raise BodyTooLarge()
                if not message.get("more_body", False):
                    return bytes(body) + part if body else part
                body += part
    except TimeoutError as e:
        raise RequestTimeout() from e


def replay_body(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body once, then whatever else comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def body_digest(receive: Receive, seconds: float) -> bytes:
    """The digest of a body that is not kept, of whatever size. Raises ``RequestTimeout`` (K02), ``Disconnected``."""
    digest = hashlib.sha256()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                digest.update(message.get("body", b""))
                if not message.get("more_body", False):
                    return digest.digest()
    except TimeoutError as e:
        raise RequestTimeout() from e


class Watched:
    """A ``receive`` that takes a digest of the body as it passes, for the claim; the body itself is not kept."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._hash = hashlib.sha256()
        self._whole = False

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            if body := message.get("body"):
                self._hash.update(body)
            self._whole = not message.get("more_body", False)
        return message

    @property
    def whole(self) -> bool:
        """Whether all of the body has been read."""
        return self._whole

    def digest(self) -> bytes:
        """Of the whole body, or nothing when the app did not read all of it."""
        return self._hash.digest() if self._whole else b""
