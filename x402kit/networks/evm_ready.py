"""Whether the rail could settle a payment now: the set-up fits the chain, and the settlement wallet can pay for gas."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Final

from ..errors import ConfigError, RailUnavailable
from ..money import Asset
from .evm import chain_id, checksum, domain_separator
from .evm_abi import call_data
from .evm_fees import Fees
from .evm_reads import Chain
from .evm_wallet import Wallet
from .rpc import RpcRefused, RpcTrouble

log = logging.getLogger("x402kit.evm")

__all__ = ["Readiness", "check_addresses", "check_chain", "check_shape"]

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}\Z", re.ASCII)
_OK_SECONDS: Final = 5.0
_BAD_SECONDS: Final = 1.0


def check_shape(what: str, address: str) -> None:
    """Refuse what is no address at all. ``ConfigError``; loads no package."""
    if not _ADDRESS.match(address):
        raise ConfigError(f"{what} is no address (0x and 40 hex digits)")


def check_addresses(pay_to: str, asset: Asset, wallet: Wallet | None) -> None:
    """Refuse a mistyped address (EIP-55), and a wallet that can't be one. ``ConfigError``; no I/O."""
    for what, address in (("pay_to", pay_to), ("asset", asset.address)):
        mixed = address[2:] not in (address[2:].lower(), address[2:].upper())
        if mixed and checksum(address) != address:
            raise ConfigError(f"{what} {address} is mistyped: its checksum (EIP-55) is wrong")
        if int(address, 16) < 0x10000:
            raise ConfigError(f"{what} {address} is no account that can hold money")
    if pay_to.lower() == asset.address.lower():
        raise ConfigError("pay_to is the token's own contract")
    if wallet is not None and (int(wallet.address, 16) < 0x10000 or wallet.address == checksum(asset.address)):
        raise ConfigError("the settlement wallet's address is no wallet's")


async def check_chain(chain: Chain, asset: Asset) -> None:
    """Compare the set-up with the chain. ``ConfigError`` when they differ; ``RpcTrouble`` when it can't be asked."""
    found = await chain.chain_id()
    if found != chain_id(asset.network):
        raise ConfigError(f"the node is on eip155:{found}, the rail on {asset.network}")
    if not await chain.has_code(asset.address):
        raise ConfigError(f"asset_not_deployed_contract: no contract at {asset.address} on {asset.network}")
    unsupported = ConfigError(f"invalid_exact_evm_eip3009_not_supported: {asset.address} on {asset.network}")
    try:
        separator = await chain.call(asset.address, call_data("DOMAIN_SEPARATOR()"))
        if not separator:
            raise unsupported
        if separator != domain_separator(asset):
            raise ConfigError(
                f"the token's EIP-712 domain is not name {asset.name!r}, version {asset.version!r} "
                f"(asset {asset.address} on {asset.network})"
            )
        await chain.authorization_used(asset.address, asset.address, bytes(32))
    except RpcRefused as e:
        if e.reverted:
            raise unsupported from e
        raise


class Readiness:
    """Asked before every settlement, answered from memory for some seconds; many askers make one look (B16)."""

    def __init__(
        self,
        chain: Chain,
        asset: Asset,
        wallet: Wallet | None,
        fees: Fees,
        *,
        needed_gas: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``needed_gas``: units that the wallet must be able to pay for at the current offer."""
        self._chain, self._asset, self._wallet, self._fees = chain, asset, wallet, fees
        self._needed_gas, self._monotonic = needed_gas, monotonic
        self._fits = False
        self._until = 0.0
        self._fault = ""
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Raises ``ConfigError``. A node that is down is no such fault: ``check`` then compares, before we settle."""
        try:
            await check_chain(self._chain, self._asset)
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

    async def _look(self) -> str:
        try:
            if not self._fits:
                await check_chain(self._chain, self._asset)
                self._fits = True
            if self._wallet is None:
                return ""
            # One after the other: where one of two fails, gather leaves the other call running.
            price = await self._fees.price()
            balance = await self._chain.balance(self._wallet.address)
        except (RpcTrouble, RpcRefused, ConfigError) as e:
            return str(e)
        except RailUnavailable as e:
            return e.detail
        if balance < self._needed_gas * price.max_fee:
            return f"the settlement wallet {self._wallet.address} is short of gas money"
        return ""
