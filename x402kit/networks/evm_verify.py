"""What only the chain can say before a payment is sent: contract signatures, and whether the transfer would work.

In this order (wire.md 2.2, 2.3):

    wrapped by ERC-6492                   eip6492_factory_not_allowed, unless its factory is on the operator's list;
                                          then, not deployed: invalid_exact_evm_payload_undeployed_smart_wallet
    not by ``from``'s own key:
      no code at from, 65 bytes           invalid_exact_evm_payload_signature
      no code at from, other length       invalid_exact_evm_payload_undeployed_smart_wallet
      code, and EIP-1271 says no          invalid_exact_evm_payload_signature
    simulation reverts                    as diagnosed: nonce used, balance, signature, times, or
                                          invalid_exact_evm_transaction_simulation_failed

We never deploy a wallet for a payer: a listed factory only means that a wrapped signature of a deployed wallet is read.
A valid signature by an address that has code (EIP-7702) is decided by the simulation, as the token itself will. Calls
have a gas cap and a time limit; nothing that a contract says is kept (B08).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from ..errors import PaymentRefused, PaymentUsed, RailUnavailable
from ..model import Authorization, PaymentRequirements
from ..money import Asset
from .evm import ERC6492_SUFFIX, PRECOMPILES, Transfer, digest, is_eoa_signature
from .evm_abi import MAGIC_1271, revert_words, transfer_data, unwrap_6492, valid_signature_data
from .evm_logs import Transferred, find_use
from .evm_reads import Chain
from .rpc import RpcRefused, RpcTrouble

__all__ = ["Verifier"]

_PREFIX: Final = "invalid_exact_evm_payload_"
_USED: Final = "invalid_exact_evm_nonce_already_used"
_CODE_SECONDS: Final = 30.0
_CODE_ENTRIES: Final = 4096


class Verifier:
    """Checks on chain; sends nothing. Raises ``PaymentRefused``, ``PaymentUsed``, ``RailUnavailable``."""

    def __init__(
        self,
        chain: Chain,
        asset: Asset,
        *,
        factories: Iterable[str] = (),
        gas: int,
        contract_gas: int,
        signature_gas: int = 250_000,
        seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chain, self._asset = chain, asset
        self._factories = frozenset(factory.lower() for factory in factories)
        self._gas, self._contract_gas = gas, contract_gas
        self._signature_gas, self._seconds, self._monotonic = signature_gas, seconds, monotonic
        self._code: dict[str, tuple[bool, float]] = {}

    def effective(self, transfer: Transfer) -> Transfer:
        """The transfer as the token must see it, unwrapped (ERC-6492). ``PaymentRefused`` for its factory (B09)."""
        if not transfer.is_wrapped:
            return transfer
        return transfer._replace(signature=self._unwrapped(transfer.signature))

    def _unwrapped(self, signature: bytes) -> bytes:
        try:
            factory, inner = unwrap_6492(signature)
        except ValueError:
            raise PaymentRefused(_PREFIX + "signature") from None
        if factory not in self._factories:
            raise PaymentRefused("eip6492_factory_not_allowed")
        return inner

    async def is_valid_signature(self, address: str, digest: bytes, signature: bytes) -> bool:
        """Whether the contract at ``address`` says now that a signature is its own; ``ContractWallets`` of port.py."""
        if int(address, 16) < PRECOMPILES:
            return False
        try:
            inner = self._unwrapped(signature) if signature.endswith(ERC6492_SUFFIX) else signature
            return await self._has_code(address) and await self._agrees(address, digest, inner)
        except PaymentRefused:
            return False
        except (RpcTrouble, RpcRefused) as e:
            raise RailUnavailable(detail=str(e)) from e

    def gas_for(self, transfer: Transfer) -> int:
        """The absolute gas limit of a settlement: no estimate, no margin (B11)."""
        return self._gas if is_eoa_signature(transfer, self._asset) else self._contract_gas

    async def verify(self, authorization: Authorization, offer: PaymentRequirements, sender: str, now: int) -> None:
        """``sender`` is the settlement wallet: the simulation runs as it."""
        transfer = self.effective(authorization.body)
        try:
            if not is_eoa_signature(transfer, self._asset):
                await self._contract_signature(transfer, wrapped=transfer is not authorization.body)
            await self._simulate(transfer, offer, sender, now)
        except (RpcTrouble, RpcRefused) as e:
            raise RailUnavailable(detail=str(e)) from e

    async def _contract_signature(self, transfer: Transfer, *, wrapped: bool) -> None:
        if not await self._has_code(transfer.payer):
            plain = len(transfer.signature) == 65 and not wrapped
            raise PaymentRefused(_PREFIX + ("signature" if plain else "undeployed_smart_wallet"))
        if not await self._agrees(transfer.payer, digest(transfer, self._asset), transfer.signature):
            raise PaymentRefused(_PREFIX + "signature")

    async def _agrees(self, wallet: str, message: bytes, signature: bytes) -> bool:
        """EIP-1271's question, with a gas cap and a time limit (B08)."""
        question = valid_signature_data(message, signature)
        try:
            answer = await self._chain.call(wallet, question, gas=self._signature_gas, seconds=self._seconds)
        except RpcRefused as e:
            if not e.reverted:
                raise
            answer = b""
        return answer == MAGIC_1271

    async def _has_code(self, address: str) -> bool:
        now = self._monotonic()
        known = self._code.get(address)
        if known is not None and known[1] > now:
            return known[0]
        found = await self._chain.has_code(address)
        while len(self._code) >= _CODE_ENTRIES:  # the oldest goes first
            del self._code[next(iter(self._code))]
        self._code.pop(address, None)
        self._code[address] = (found, now + _CODE_SECONDS)
        return found

    async def _simulate(self, transfer: Transfer, offer: PaymentRequirements, sender: str, now: int) -> None:
        refusal = await self.refusal(transfer_data(transfer), self.gas_for(transfer), sender, "latest")
        if refusal is None:
            return
        wanted = Transferred(
            self._asset.address.lower(), transfer.payer, offer.pay_to.lower(), offer.amount, transfer.nonce
        )
        spent = revert_words(refusal) == _USED  # the words count too: the next read may be a lagging replica's (I-09)
        if spent or await self._chain.authorization_used(wanted.asset, wanted.payer, wanted.nonce):
            await self._used(wanted, now)
        raise PaymentRefused(await self.diagnose(refusal, wanted))

    async def refusal(self, data: bytes, gas: int, sender: str, block: int | str) -> str | None:
        """Why the token would refuse a transfer at ``block``, in its own words in lower case; None if it would not."""
        try:
            await self._chain.call(
                self._asset.address, data, sender=sender, gas=gas, block=block, seconds=self._seconds
            )
        except RpcRefused as e:
            if e.reverted:
                return e.revert_reason
            raise
        return None

    async def diagnose(self, refusal: str, wanted: Transferred, block: int | str = "latest") -> str:
        """The published reason for a refusal; the balance is looked at where the words say nothing."""
        known = revert_words(refusal)
        if known:
            return known
        if await self._chain.token_balance(wanted.asset, wanted.payer, block) < wanted.value:
            return "invalid_exact_evm_insufficient_balance"
        return "invalid_exact_evm_transaction_simulation_failed"

    async def _used(self, wanted: Transferred, now: int) -> None:
        """B05: a spent nonce. If the money came to us, or that can't be seen, nobody may be asked to sign anew."""
        use = await find_use(self._chain, wanted, await self._chain.head(), now)
        if use is None:
            raise PaymentUsed(_USED)
        if use.log_index >= 0:
            raise PaymentUsed(_USED, reference=use.receipt.transaction)
        raise PaymentRefused(_USED)
