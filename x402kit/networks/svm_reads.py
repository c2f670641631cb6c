"""What we ask a Solana node, each call with what it answers. Raises ``RpcTrouble`` and ``RpcRefused`` (rpc.py)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar, cast

from ..model import Json
from .rpc import Node as Endpoint
from .rpc import RpcTrouble

__all__ = ["Account", "Latest", "Node", "Simulated", "Status"]

_T = TypeVar("_T")
_LEVELS: Final = ("processed", "confirmed", "finalized")


class Account(NamedTuple):
    """An account as it stands."""

    owner: str
    data: bytes
    lamports: int


class Latest(NamedTuple):
    """The newest blockhash: the slot in which it was seen, and the last height at which it can be used."""

    slot: int
    last_valid: int


class Simulated(NamedTuple):
    """What a transaction would do. ``error`` is None, a word, or an object, as Solana writes them."""

    error: Any
    units: int


class Status(NamedTuple):
    """What a node says of a signature. ``seen_at``: the slot up to which it had looked; ``level`` -1: it knows none."""

    seen_at: int
    slot: int = 0
    error: Any = None
    level: int = -1

    @property
    def is_finalized(self) -> bool:
        return self.level == len(_LEVELS) - 1


class Node:
    """One node, or several as one."""

    def __init__(self, rpc: Endpoint) -> None:
        self._rpc = rpc

    async def genesis(self) -> str:
        """The genesis hash, whose first 32 characters name the network (CAIP-2)."""
        return await self._ask(_text, "getGenesisHash")

    async def account(self, address: str) -> Account | None:
        options = {"encoding": "base64", "commitment": "confirmed"}
        return await self._ask(lambda found: _account(_value(found)), "getAccountInfo", address, options)

    async def lamports(self, address: str) -> int:
        return await self._ask(lambda found: _number(_value(found)), "getBalance", address, {"commitment": "confirmed"})

    async def rent(self, size: int) -> int:
        """Lamports that keep an account of so many bytes."""
        return await self._ask(_number, "getMinimumBalanceForRentExemption", size)

    async def latest(self) -> Latest:
        def read(found: Any) -> Latest:
            return Latest(_number(found["context"]["slot"]), _number(found["value"]["lastValidBlockHeight"]))

        return await self._ask(read, "getLatestBlockhash", {"commitment": "processed"})

    async def blockhash(self) -> tuple[str, int]:
        """The newest that is confirmed, and the last height at which it can be used."""

        def read(found: Any) -> tuple[str, int]:
            return _text(found["value"]["blockhash"]), _number(found["value"]["lastValidBlockHeight"])

        return await self._ask(read, "getLatestBlockhash", {"commitment": "confirmed"})

    async def simulate(self, raw: bytes, seconds: float | None = None) -> Simulated:
        """Without signatures: what is simulated can't be sent by who sees it."""
        options = {"encoding": "base64", "sigVerify": False, "commitment": "processed"}

        def read(found: Any) -> Simulated:
            value = _value(found)
            return Simulated(value["err"], _number(value.get("unitsConsumed") or 0))

        return await self._ask(read, "simulateTransaction", _b64(raw), options, seconds=seconds)

    async def send(self, raw: bytes) -> None:
        """Broadcast; the node looks at nothing but the signatures."""
        await self._rpc.call("sendTransaction", _b64(raw), {"encoding": "base64", "skipPreflight": True})

    async def status(self, signature: str) -> Status:
        """Its history included."""
        return await self._ask(_status, "getSignatureStatuses", [signature], {"searchTransactionHistory": True})

    async def finalized(self) -> tuple[int, int]:
        """Height and slot of the newest finalized block."""

        def read(found: Any) -> tuple[int, int]:
            return _number(found["blockHeight"]), _number(found["absoluteSlot"])

        return await self._ask(read, "getEpochInfo", {"commitment": "finalized"})

    async def confirmed_slot(self) -> int:
        """The newest slot whose block is confirmed."""
        return await self._ask(_number, "getSlot", {"commitment": "confirmed"})

    async def first_slot(self) -> int:
        """The oldest slot that the node's history holds."""
        return await self._ask(_number, "getFirstAvailableBlock")

    async def is_valid(self, blockhash: str) -> bool:
        """Whether a transaction with this blockhash could land now, in the newest block that the node has."""
        options = {"commitment": "processed"}
        return await self._ask(lambda found: _value(found) is True, "isBlockhashValid", blockhash, options)

    async def transaction(self, signature: str) -> Json | None:
        """As ``getTransaction`` gives it, its bytes in base64; None where the node has it not, or not confirmed."""
        options = {"encoding": "base64", "commitment": "confirmed", "maxSupportedTransactionVersion": 0}

        def read(found: Any) -> Json | None:
            return None if found is None else _object(found)

        return await self._ask(read, "getTransaction", signature, options)

    async def signatures(self, address: str, *, before: str = "", limit: int = 1000) -> list[Json]:
        """Confirmed transactions that name an address, newest first: ``signature``, ``slot``, ``err`` and more."""
        options: Json = {"commitment": "confirmed", "limit": limit, **({"before": before} if before else {})}

        def read(found: Any) -> list[Json]:
            return [_object(each) for each in cast("list[Any]", found)]

        return await self._ask(read, "getSignaturesForAddress", address, options)

    async def _ask(self, read: Callable[[Any], _T], method: str, *params: Any, seconds: float | None = None) -> _T:
        answer = await self._rpc.call(method, *params, seconds=seconds)
        try:
            return read(answer)
        except (TypeError, KeyError, ValueError, IndexError, AttributeError) as e:
            raise RpcTrouble(method, "garbage", sent=True) from e


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _object(value: Any) -> Json:
    if not isinstance(value, Mapping):
        raise TypeError("not an object")
    return dict(cast("Mapping[str, Any]", value))


def _value(found: Any) -> Any:
    return _object(found)["value"]


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError("not a number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _account(value: Any) -> Account | None:
    if value is None:
        return None
    found = _object(value)
    try:
        data = base64.b64decode(_text(found["data"][0]), validate=True)
    except binascii.Error as e:
        raise ValueError("not base64") from e
    return Account(_text(found["owner"]), data, _number(found["lamports"]))


def _status(answer: Any) -> Status:
    seen_at = _number(_object(answer)["context"]["slot"])
    value = _value(answer)[0]
    if value is None:
        return Status(seen_at)
    found = _object(value)
    level = found.get("confirmationStatus")
    if level is None:  # of nodes that leave it out, the oldest rule: no number of confirmations means rooted
        level = "finalized" if found.get("confirmations") is None else "processed"
    return Status(seen_at, _number(found["slot"]), found.get("err"), _LEVELS.index(level))
