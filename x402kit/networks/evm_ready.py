"""Whether the rail could settle a payment now: the set-up fits the chain, and the settlement wallet can pay for gas."""

from __future__ import annotations

import logging
import re
from typing import Final

from ..errors import ConfigError, WrongChain
from ..money import Asset
from .evm import chain_id, checksum, domain_separator
from .evm_abi import call_data
from .evm_fees import Fees
from .evm_reads import Chain
from .evm_wallet import Wallet
from .ready import Watch
from .rpc import RpcRefused

log = logging.getLogger("x402kit.evm")

__all__ = ["Readiness", "check_addresses", "check_chain", "check_shape"]

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}\Z", re.ASCII)


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
        raise WrongChain(f"the node is on eip155:{found}, the rail on {asset.network}")
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


class Readiness(Watch):
    """The chain and the token are as they were set up, and the wallet can pay for gas."""

    def __init__(self, chain: Chain, asset: Asset, wallet: Wallet | None, fees: Fees, *, needed_gas: int) -> None:
        """``needed_gas``: units that the wallet must be able to pay for at the current offer."""
        super().__init__(asset.network, log)
        self._chain, self._asset, self._wallet, self._fees = chain, asset, wallet, fees
        self._needed_gas = needed_gas

    async def _compare(self) -> None:
        await check_chain(self._chain, self._asset)

    async def _lacking(self) -> str:
        if self._wallet is None:
            return ""
        # One after the other: where one of two fails, gather leaves the other call running.
        price = await self._fees.price()
        balance = await self._chain.balance(self._wallet.address)
        if balance < self._needed_gas * price.max_fee:
            return f"the settlement wallet {self._wallet.address} is short of gas money"
        return ""
