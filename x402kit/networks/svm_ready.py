"""Whether the rail could settle a payment now: chain, mint, the recipient's token account, SOL for the fees (B16)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from ..errors import ConfigError, RailUnavailable
from ..money import Asset
from .rpc import RpcRefused, RpcTrouble
from .svm_assets import KNOWN_2022, check_extensions
from .svm_reads import Node
from .svm_transaction import TOKEN, TOKEN_2022, address_bytes, address_text, token_account

log = logging.getLogger("x402kit.svm")

__all__ = ["Readiness", "token_program"]

_PUBLIC: Final = frozenset(
    ("5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", "EtWTRABZaYq6iMfeYKouRu166VU2xqa1", "4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z")
)
_OK_SECONDS: Final = 5.0
_BAD_SECONDS: Final = 1.0


def token_program(asset: Asset, allowed: frozenset[str]) -> bytes:
    """The program that an asset's mint must belong to: Token-2022 only where the mint is on a list (D05)."""
    return TOKEN_2022 if asset.address in KNOWN_2022 or asset.address in allowed else TOKEN


class Readiness:
    """Asked before every settlement, answered from memory for some seconds; many askers make one look."""

    def __init__(
        self,
        node: Node,
        asset: Asset,
        program: bytes,
        pay_to: str,
        wallet: str,
        *,
        needed_lamports: int,
        creates: bool,
        local: bool,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``wallet``: who pays the fees; empty where a facilitator does. ``creates``: its account may be missing."""
        self._node, self._asset, self._program, self._wallet = node, asset, program, wallet
        self._pay_to, self._needed, self._creates, self._local = pay_to, needed_lamports, creates, local
        self._monotonic = monotonic
        self._fits = False
        self._until = 0.0
        self._fault = ""
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Raises ``ConfigError``. A node that is down is no such fault: ``check`` then compares, before we settle."""
        try:
            await self._compare()
        except (RpcTrouble, RpcRefused):
            return
        self._fits = True

    async def check(self) -> None:
        """Raises ``RailUnavailable``."""
        if self._monotonic() >= self._until:
            async with self._lock:
                if self._monotonic() >= self._until:
                    before, self._fault = self._fault, await self._look()
                    if self._fault and self._fault != before:
                        log.error("ALERT: no settlement on %s: %s", self._asset.network, self._fault)
                    self._until = self._monotonic() + (_BAD_SECONDS if self._fault else _OK_SECONDS)
        if self._fault:
            raise RailUnavailable(detail=self._fault)

    def forget(self) -> None:
        """Look anew next time: something was refused."""
        self._until = 0.0

    async def recipient_is_missing(self) -> bool:
        """Whether the recipient has no account for this token. Raises what the node's calls raise."""
        return await self._node.account(self._recipient()) is None

    def _recipient(self) -> str:
        mint = address_bytes(self._asset.address)
        return address_text(token_account(address_bytes(self._pay_to), mint, self._program))

    async def _compare(self) -> None:
        asset = self._asset
        genesis = (await self._node.genesis())[:32]
        if f"solana:{genesis}" != asset.network and (genesis in _PUBLIC or not self._local):
            raise ConfigError(f"the node is on solana:{genesis}, the rail on {asset.network}")
        mint = await self._node.account(asset.address)
        if mint is None or address_bytes(mint.owner) != self._program or len(mint.data) < 82 or not mint.data[45]:
            raise ConfigError(f"{asset.address} on {asset.network} is no mint of the token program that it must be of")
        if mint.data[44] != asset.decimals:
            raise ConfigError(f"{asset.address} has {mint.data[44]} decimals, not {asset.decimals}")
        check_extensions(mint.data)
        owner = await self._node.account(self._pay_to)
        if owner is not None and address_bytes(owner.owner) in (TOKEN, TOKEN_2022):
            raise ConfigError("pay_to is a token account; give the wallet that owns it")

    async def _look(self) -> str:
        try:
            if not self._fits:
                await self._compare()
                self._fits = True
            return await self._recipient_fault() or await self._wallet_fault()
        except (RpcTrouble, RpcRefused, ConfigError) as e:
            return str(e)

    async def _recipient_fault(self) -> str:
        account = self._recipient()
        found = await self._node.account(account)
        if found is None:
            return "" if self._creates else f"the recipient's token account {account} does not exist"
        if len(found.data) < 165 or found.data[32:64] != address_bytes(self._pay_to) or found.data[108] != 1:
            return f"the recipient's token account {account} is frozen, or another's by now"
        return ""

    async def _wallet_fault(self) -> str:
        if self._wallet and await self._node.lamports(self._wallet) < self._needed:
            return f"the settlement wallet {self._wallet} is short of SOL for fees"
        return ""
