"""Whether the rail could settle a payment now: chain, mint, the recipient's token account, SOL for the fees (B16)."""

from __future__ import annotations

import logging
from typing import Final

from ..errors import ConfigError, WrongChain
from ..money import Asset
from .ready import Watch
from .svm_assets import KNOWN_2022, check_extensions
from .svm_reads import Node
from .svm_transaction import TOKEN, TOKEN_2022, address_bytes, address_text, token_account

log = logging.getLogger("x402kit.svm")

__all__ = ["Readiness", "token_program"]

_PUBLIC: Final = frozenset(
    ("5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", "EtWTRABZaYq6iMfeYKouRu166VU2xqa1", "4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z")
)


def token_program(asset: Asset, allowed: frozenset[str]) -> bytes:
    """The program that an asset's mint must belong to: Token-2022 only where the mint is on a list (D05)."""
    return TOKEN_2022 if asset.address in KNOWN_2022 or asset.address in allowed else TOKEN


class Readiness(Watch):
    """The chain and the mint are as they were set up, the recipient can receive, and the wallet can pay the fees."""

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
    ) -> None:
        """``wallet``: who pays the fees; empty where a facilitator does. ``creates``: its account may be missing."""
        super().__init__(asset.network, log)
        self._node, self._asset, self._program, self._wallet = node, asset, program, wallet
        self._pay_to, self._needed, self._creates, self._local = pay_to, needed_lamports, creates, local

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
            raise WrongChain(f"the node is on solana:{genesis}, the rail on {asset.network}")
        mint = await self._node.account(asset.address)
        if mint is None or address_bytes(mint.owner) != self._program or len(mint.data) < 82 or not mint.data[45]:
            raise ConfigError(f"{asset.address} on {asset.network} is no mint of the token program that it must be of")
        if mint.data[44] != asset.decimals:
            raise ConfigError(f"{asset.address} has {mint.data[44]} decimals, not {asset.decimals}")
        check_extensions(mint.data)
        owner = await self._node.account(self._pay_to)
        if owner is not None and address_bytes(owner.owner) in (TOKEN, TOKEN_2022):
            raise ConfigError("pay_to is a token account; give the wallet that owns it")

    async def _lacking(self) -> str:
        return await self._recipient_fault() or await self._wallet_fault()

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
