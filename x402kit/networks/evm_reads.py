"""Typed reads of an EVM chain. An answer that is not as it must be is ``RpcTrouble``, never a crash or a guess."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from .evm_abi import address_word, call_data
from .rpc import Node, RpcTrouble

__all__ = ["Block", "Chain", "Log", "Receipt", "hex_data"]

T = TypeVar("T")
_QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]{1,64}\Z", re.ASCII)
_HASH: Final = re.compile(r"0x[0-9a-fA-F]{64}\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Log:
    """An event. Address and topics in lower case; ``index`` counts in the whole block."""

    address: str
    topics: tuple[str, ...]
    data: bytes
    index: int
    transaction: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a transaction that is in a block."""

    transaction: str
    succeeded: bool
    block: int
    block_hash: str
    logs: tuple[Log, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A block's header, as far as we need it. ``base_fee`` in wei, 0 on a chain without EIP-1559."""

    number: int
    hash: str
    timestamp: int
    base_fee: int


def hex_data(data: bytes) -> str:
    """Bytes as JSON-RPC writes them."""
    return "0x" + data.hex()


def _quantity(value: Any) -> int:
    if not isinstance(value, str) or not _QUANTITY.match(value):
        raise ValueError("not a quantity")
    return int(value, 16)


def _hash(value: Any) -> str:
    if not isinstance(value, str) or not _HASH.match(value):
        raise ValueError("not a hash")
    return value.lower()


def _bytes(value: Any) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x"):
        raise ValueError("not data")
    return bytes.fromhex(value[2:])


def _log(entry: Any) -> Log:
    return Log(
        address=str(entry["address"]).lower(),
        topics=tuple(_hash(item) for item in entry["topics"]),
        data=_bytes(entry["data"]),
        index=_quantity(entry["logIndex"]),
        transaction=_hash(entry["transactionHash"]),
    )


def _receipt(entry: Any) -> Receipt | None:
    if entry is None or entry.get("blockHash") is None:  # some nodes give a receipt before there is a block
        return None
    return Receipt(
        transaction=_hash(entry["transactionHash"]),
        succeeded=_quantity(entry["status"]) == 1,
        block=_quantity(entry["blockNumber"]),
        block_hash=_hash(entry["blockHash"]),
        logs=tuple(_log(item) for item in entry["logs"]),
    )


def _block(entry: Any) -> Block:
    return Block(
        _quantity(entry["number"]),
        _hash(entry["hash"]),
        _quantity(entry["timestamp"]),
        _quantity(entry.get("baseFeePerGas") or "0x0"),
    )


class Chain:
    """Reads through one node, or several as one. Every method raises ``RpcTrouble`` and ``RpcRefused``.

    ``block`` is a number, so that what belongs together is read at one block (I-09), or ``"latest"``, ``"pending"``.
    """

    def __init__(self, node: Node) -> None:
        self.node = node

    async def _read(self, parse: Callable[[Any], T], method: str, *params: Any, seconds: float | None = None) -> T:
        result = await self.node.call(method, *params, seconds=seconds)
        try:
            return parse(result)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise RpcTrouble(method, "garbage", sent=True) from None

    async def chain_id(self) -> int:
        return await self._read(_quantity, "eth_chainId")

    async def head(self) -> int:
        """The latest block's number."""
        return await self._read(_quantity, "eth_blockNumber")

    async def block(self, block: int | str = "latest") -> Block:
        return await self._read(_block, "eth_getBlockByNumber", _tag(block), False)

    async def tip(self) -> int:
        """What the node advises as a priority fee, in wei."""
        return await self._read(_quantity, "eth_maxPriorityFeePerGas")

    async def balance(self, address: str) -> int:
        """Wei of the chain's own coin."""
        return await self._read(_quantity, "eth_getBalance", address, "latest")

    async def transaction_count(self, address: str, block: int | str) -> int:
        return await self._read(_quantity, "eth_getTransactionCount", address, _tag(block))

    async def has_code(self, address: str) -> bool:
        return bool(await self._read(_bytes, "eth_getCode", address, "latest"))

    async def call(
        self,
        to: str,
        data: bytes,
        *,
        block: int | str = "latest",
        sender: str | None = None,
        gas: int | None = None,
        seconds: float | None = None,
    ) -> bytes:
        """The answer of a contract; ``RpcRefused.reverted`` where it refuses."""
        transaction = {"to": to, "data": hex_data(data)}
        if sender:
            transaction["from"] = sender
        if gas:
            transaction["gas"] = hex(gas)
        return await self._read(_bytes, "eth_call", transaction, _tag(block), seconds=seconds)

    async def call_number(self, to: str, data: bytes, *, block: int | str = "latest") -> int:
        """As ``call``, for a contract that answers one word."""
        answer = await self.call(to, data, block=block)
        if len(answer) < 32:
            raise RpcTrouble("eth_call", "garbage", sent=True)
        return int.from_bytes(answer[:32], "big")

    async def token_balance(self, asset: str, owner: str, block: int | str = "latest") -> int:
        """Atomic units of a token."""
        return await self.call_number(asset, call_data("balanceOf(address)", address_word(owner)), block=block)

    async def authorization_used(self, asset: str, payer: str, nonce: bytes, block: int | str = "latest") -> bool:
        """EIP-3009: whether the nonce is used or cancelled."""
        data = call_data("authorizationState(address,bytes32)", address_word(payer), nonce)
        return bool(await self.call_number(asset, data, block=block))

    async def receipt(self, transaction: str) -> Receipt | None:
        found = await self._read(_receipt, "eth_getTransactionReceipt", transaction)
        if found is not None and found.transaction != transaction.lower():
            raise RpcTrouble("eth_getTransactionReceipt", "another transaction's", sent=True)
        return found

    async def sent_in(self, block: int, sender: str, nonce: int) -> str:
        """The hash of the transaction that used a nonce of ``sender`` in this block; empty if none did."""

        def find(entry: Any) -> str:
            for made in entry["transactions"]:
                if made["from"].lower() == sender.lower() and _quantity(made["nonce"]) == nonce:
                    return _hash(made["hash"])
            return ""

        return await self._read(find, "eth_getBlockByNumber", _tag(block), True)

    async def knows(self, transaction: str) -> bool:
        """Whether the node has the transaction, in a block or waiting for one."""
        return await self._read(lambda found: found is not None, "eth_getTransactionByHash", transaction)

    async def logs(self, address: str, topics: list[Any], first: int, last: int) -> list[Log]:
        """Events of a contract in the blocks ``first`` to ``last``."""
        wanted = {"address": address, "topics": topics, "fromBlock": hex(first), "toBlock": hex(last)}
        return await self._read(lambda found: [_log(entry) for entry in found], "eth_getLogs", wanted)

    async def send(self, raw: bytes) -> str:
        """Broadcast; the hash that the node gives it."""
        return await self._read(_hash, "eth_sendRawTransaction", hex_data(raw))


def _tag(block: int | str) -> str:
    return block if isinstance(block, str) else hex(block)
