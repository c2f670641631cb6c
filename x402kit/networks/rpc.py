"""JSON-RPC to a chain's nodes: one or several URLs, or any object with ``make_request``.

Two exceptions say all that the rails need. ``RpcTrouble``: no answer that can be used; ``sent`` tells whether the call
may have arrived. ``RpcRefused``: the node's error answer. Neither shows a URL or the node's words when printed (I11).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, cast, runtime_checkable

from ..errors import ConfigError
from .foreign import ForeignFault, foreign
from .http import Answer, JsonClient, NotSent, Unknown, check_url

__all__ = ["Endpoint", "HttpNode", "Node", "Provider", "ProviderNode", "Rpc", "RpcRefused", "RpcTrouble"]

_BUSY: Final = frozenset((-32005, -32603, -32002, -32097, 429))
"""Codes of a node that could not work on the call: over its rate, out of something, broken inside."""
_REVERTS: Final = ("revert", "out of gas", "outofgas", "invalid opcode", "vm execution error", "invalidfeopcode")
_PLAIN_ERROR: Final = bytes.fromhex("08c379a0")


@runtime_checkable
class Provider(Protocol):
    """What web3's asynchronous providers are."""

    async def make_request(self, method: Any, params: Any) -> Any: ...


Endpoint = str | Sequence[str] | Provider


class RpcTrouble(Exception):
    """No usable answer. ``sent``: the call may have arrived all the same."""

    def __init__(self, method: str, why: str, *, sent: bool) -> None:
        self.method, self.why, self.sent = method, why, sent
        super().__init__(f"{method}: {why}")


class RpcRefused(Exception):
    """The node answered with an error. ``text`` is its own wording, to be compared with and never to be shown.

    ``alone``: no other try of this call may have arrived, so what the refusal says of the call is all there is.
    """

    def __init__(self, method: str, code: int, text: str, data: bytes, *, alone: bool = True) -> None:
        self.method, self.code, self.text, self.data, self.alone = method, code, text.lower(), data, alone
        super().__init__(f"{method}: the node refused it ({code})")

    @property
    def reverted(self) -> bool:
        """Whether it is the contract that refused, not the node."""
        return self.code == 3 or bool(self.data) or any(word in self.text for word in _REVERTS)

    @property
    def revert_reason(self) -> str:
        """The contract's own words in lower case, or the node's where it does not pass them on."""
        if self.data.startswith(_PLAIN_ERROR) and len(self.data) >= 68:
            length = int.from_bytes(self.data[36:68], "big")
            return self.data[68 : 68 + min(length, 256)].decode("utf-8", "replace").lower()
        return self.text


class Node(Protocol):
    """One place to ask."""

    async def call(self, method: str, *params: Any, seconds: float | None = None) -> Any:
        """The result. Raises ``RpcTrouble`` and ``RpcRefused``."""
        ...


class HttpNode:
    """A node at a URL. A connection that broke is tried once more: each method that we use can be repeated."""

    def __init__(self, client: JsonClient, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._client, self._url, self._headers = client, check_url(url, "an RPC address"), headers

    async def call(self, method: str, *params: Any, seconds: float | None = None) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = await self._client.post(self._url, body, headers=self._headers, seconds=seconds)
        again = isinstance(answer, Unknown) and answer.why == "disconnected"
        if again:
            answer = await self._client.post(self._url, body, headers=self._headers, seconds=seconds)
        if not isinstance(answer, Answer):
            raise RpcTrouble(method, answer.why, sent=again or not isinstance(answer, NotSent))
        if answer.status >= 500 or answer.status == 429:
            raise RpcTrouble(method, "busy", sent=True)
        return _result(method, answer.json, alone=not again)


class ProviderNode:
    """A node behind an object with ``make_request``, such as web3's ``AsyncHTTPProvider``."""

    def __init__(self, provider: Provider, seconds: float) -> None:
        self._provider, self._seconds = provider, seconds

    async def call(self, method: str, *params: Any, seconds: float | None = None) -> Any:
        try:
            made = await foreign(self._provider.make_request(method, list(params)), seconds or self._seconds)
        except ForeignFault:
            raise RpcTrouble(method, "provider", sent=True) from None
        return _result(method, made, alone=True)


class Rpc:
    """The nodes in their order: the next is asked when one is in trouble, and stays the first one asked then."""

    def __init__(self, endpoint: Endpoint, *, seconds: float = 10.0, headers: Mapping[str, str] | None = None) -> None:
        """No I/O. Raises ``ConfigError``."""
        self._client = JsonClient(seconds=seconds)
        self._first = 0
        if isinstance(endpoint, str) or (isinstance(endpoint, Sequence) and endpoint):
            urls = (endpoint,) if isinstance(endpoint, str) else tuple(endpoint)
            self.nodes: tuple[Node, ...] = tuple(HttpNode(self._client, url, headers) for url in urls)
        elif isinstance(endpoint, Provider):
            self.nodes = (ProviderNode(endpoint, seconds),)
        else:
            raise ConfigError("rpc is a URL, several, or an object with make_request")

    async def call(self, method: str, *params: Any, seconds: float | None = None) -> Any:
        """The result. Raises ``RpcRefused``, or ``RpcTrouble`` when no node answers."""
        sent = False
        trouble = RpcTrouble(method, "no node", sent=False)
        for turn in range(len(self.nodes)):
            index = (self._first + turn) % len(self.nodes)
            try:
                result = await self.nodes[index].call(method, *params, seconds=seconds)
            except RpcTrouble as e:
                sent, trouble = sent or e.sent, e
                continue
            except RpcRefused as e:
                e.alone = e.alone and not sent
                raise
            self._first = index
            return result
        raise RpcTrouble(method, trouble.why, sent=sent)

    async def close(self) -> None:
        """Close our own connections; a provider is its owner's."""
        await self._client.close()


def _result(method: str, answer: object, *, alone: bool) -> Any:
    if not isinstance(answer, Mapping):
        raise RpcTrouble(method, "garbage", sent=True)
    fields = cast("Mapping[str, Any]", answer)
    error = fields.get("error")
    if error is None and "result" in fields:
        return fields["result"]
    if not isinstance(error, Mapping):
        raise RpcTrouble(method, "garbage", sent=True)
    refused = _refusal(method, cast("Mapping[str, Any]", error), alone)
    if refused.code in _BUSY and not refused.reverted:
        raise RpcTrouble(method, "busy", sent=True)
    raise refused


def _refusal(method: str, error: Mapping[str, Any], alone: bool) -> RpcRefused:
    code, text, data = error.get("code"), error.get("message"), error.get("data")
    if isinstance(data, Mapping):  # some nodes wrap it
        data = cast("Mapping[str, Any]", data).get("data")
    try:
        raw = bytes.fromhex(data[2:]) if isinstance(data, str) and data.startswith("0x") else b""
    except ValueError:
        raw = b""
    return RpcRefused(
        method, code if isinstance(code, int) else 0, text if isinstance(text, str) else "", raw, alone=alone
    )
