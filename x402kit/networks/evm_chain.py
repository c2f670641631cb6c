"""The EVM rail: ``exact`` by EIP-3009, settled by our own wallet. The port of ``port.py`` put together from its parts.

evm.py          what is decided offline           evm_sender.py   prepare, send, the wallet's nonces
evm_ready.py    set-up and gas money              evm_outcome.py  what became of it
evm_verify.py   contract signatures, simulation   gas.py          the settlement's cost inside the price
evm_payout.py   a balance back to its owner       evm_scan.py     what we were paid, by the chain alone
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from ..errors import ConfigError, PaymentRefused, RailUnavailable
from ..model import Authorization, Claim, Intent, Json, Outcome, PaymentPayload, PaymentRequirements
from ..money import Asset
from . import evm
from .assets import default_asset
from .evm_abi import transfer_data
from .evm_fees import Fees, default_fee_cap
from .evm_options import EvmOptions
from .evm_outcome import Judge, Verdict, agreed
from .evm_payout import judge_payout, prepare_payout
from .evm_reads import Chain
from .evm_ready import Readiness, check_addresses, check_shape
from .evm_scan import head_block, settled_since
from .evm_sender import Sender
from .evm_verify import Verifier
from .evm_wallet import Wallet
from .gas import GasMeter, GasPolicy
from .port import ContractWallets, Landed, Nonces
from .rpc import Endpoint, Rpc

__all__ = ["EvmRail"]

_DEFAULTS: Final = EvmOptions()
_FULL_LOOK_SECONDS: Final = 2.0
_VERIFY_SECONDS: Final = 5.0


class EvmRail:
    """One asset on one EVM chain, to one recipient. Without a wallet it only reads: a facilitator then settles.

    Amounts are atomic units of ``asset``. Constructing it does no I/O and loads no package.
    """

    scheme = "exact"
    prepare_is_pure = False

    def __init__(
        self,
        network: str,
        *,
        pay_to: str,
        wallet: Wallet | None = None,
        rpc: Endpoint | None = None,
        confirmations: int = 0,
        gas: GasPolicy | None = None,
        asset: Asset | None = None,
        options: EvmOptions = _DEFAULTS,
    ) -> None:
        """Raises ``ConfigError``."""
        self._options = options
        self.network, self.asset, self._chain_id = network, *_asset(network, asset)
        self.pay_to, self.confirmations, self.wallet = pay_to, confirmations, wallet
        for what, address in (("pay_to", pay_to), ("the asset", self.asset.address)):
            check_shape(what, address)
        if type(confirmations) is not int or confirmations < 0:
            raise ConfigError("confirmations is a whole number of blocks, 0 or more")
        self.final_depth = max(self._options.final_depth, confirmations)
        if rpc is None and (wallet is not None or gas is not None):
            raise ConfigError(f"{network} needs rpc=…, the address of a node")
        self.rpc = None if rpc is None else Rpc(rpc, seconds=self._options.rpc_seconds)
        self._parts = None if self.rpc is None else _Parts(self, self.rpc, self._options, gas)
        quorum, nodes = self._options.quorum, len(self.rpc.nodes) if self.rpc else 1
        if not 1 <= quorum <= nodes:
            raise ConfigError(f"a quorum of {quorum} needs as many RPC addresses")

    @property
    def signers(self) -> tuple[str, ...]:
        """The settlement wallet's address, where there is one."""
        return () if self.wallet is None else (self.wallet.address,)

    @property
    def contract_wallets(self) -> ContractWallets | None:
        """Who asks this chain's contract wallets; None without a node, or where they are switched off."""
        return self._parts.verifier if self._parts is not None and self._options.contract_wallets else None

    def for_recipient(self, pay_to: str) -> EvmRail:
        """The same rail paid to another address, over the same node and wallet. ``ConfigError`` for no such address."""
        check_shape("pay_to", pay_to)
        check_addresses(pay_to, self.asset, self.wallet)
        made = copy.copy(self)
        made.pay_to = pay_to
        return made

    # What a price and a challenge need

    def extra(self) -> Json:
        """The EIP-712 name and version that standard clients sign with."""
        return {"name": self.asset.name, "version": self.asset.version}

    def surcharge(self) -> int:
        """Atomic units of the settlement's cost; 0 without a gas policy. ``RailUnavailable`` before a first price."""
        meter = self._parts.meter if self._parts else None
        return meter.surcharge() if meter else 0

    def surcharges(self) -> tuple[int, ...]:
        """This window's surcharge first, then those whose challenges still live."""
        meter = self._parts.meter if self._parts else None
        return meter.surcharges() if meter else (0,)

    # Offline

    def parse(self, payment: PaymentPayload, offer: PaymentRequirements) -> Authorization:
        """Read an EIP-3009 payload. Raises ``MalformedPayment``."""
        return evm.parse(payment, offer)

    def check(self, authorization: Authorization, offer: PaymentRequirements, now: int) -> None:
        """The offline table of evm.py. Raises ``PaymentRefused``; a signature by no key may still be a contract's."""
        transfer = evm.check(authorization, offer, authorization.network, now)
        if not evm.is_eoa_signature(transfer, self.asset) and not self._options.contract_wallets:
            raise PaymentRefused("invalid_exact_evm_payload_signature")

    # Through a facilitator (facilitator.py)

    def payload(self, authorization: Authorization) -> Json:
        """What a facilitator is shown: the payer's payload, in the published shape."""
        return evm.payload_json(authorization)

    def adopt(self, extra: Json) -> None:
        """Nothing of a facilitator's is needed in an offer."""

    # With the chain

    async def start(self) -> None:
        """Compare addresses, chain id, token and its EIP-712 domain with the set-up. Raises ``ConfigError``.

        A node that is down is no such fault: the comparison is then made before anything is sent.
        """
        check_addresses(self.pay_to, self.asset, self.wallet)
        if self._parts is not None:
            await self._parts.readiness.start()
            if self._parts.meter is not None:
                await self._parts.meter.refresh()
                self._parts.meter.start()

    async def ready(self) -> None:
        """Raises ``RailUnavailable`` when the wallet could not pay for settlements now, or the gas price is stale."""
        if self._parts is None:
            return
        await self._parts.readiness.check()
        if self._parts.meter is not None:
            self._parts.meter.check()

    async def verify(self, authorization: Authorization, offer: PaymentRequirements) -> None:
        """evm_verify.py's table. Sends nothing. Raises ``PaymentRefused``, ``PaymentUsed``, ``RailUnavailable``."""
        parts, wallet = self._ours()
        await parts.verifier.verify(authorization, offer, wallet.address, int(self._options.clock()))

    async def prepare(self, authorization: Authorization, offer: PaymentRequirements, nonces: Nonces) -> Intent:
        """Take a nonce and sign; the intent's reference is the hash. Sends nothing. Raises ``RailUnavailable``."""
        parts, _ = self._ours()
        transfer = parts.verifier.effective(authorization.body)
        gas = parts.verifier.gas_for(transfer)
        data = transfer_data(transfer)
        assert parts.sender is not None
        return await parts.sender.prepare(self.asset.address, data, gas, authorization.payment_id, nonces)

    async def send(self, intent: Intent) -> Outcome:
        """Broadcast it, or once more. Failed only where no pool can have it; see evm_sender.py."""
        parts, _ = self._ours()
        assert parts.sender is not None
        made = await parts.sender.send(intent)
        if made.state == "failed":
            parts.readiness.forget()
        return made

    async def discard(self, intent: Intent, nonces: Nonces) -> None:
        """Release the nonce of an intent that was never broadcast."""
        parts, _ = self._ours()
        assert parts.sender is not None
        await parts.sender.discard(intent, nonces)

    async def outcome(self, claim: Claim) -> Outcome:
        """evm_outcome.py's table; for high amounts as many nodes must say the same as ``quorum`` asks for (I-10)."""
        return await self._judge(claim, quick=False)

    async def wait(self, claim: Claim, seconds: float) -> Outcome:
        """``outcome`` until it is certain or the time is over, with growing pauses."""
        made = Outcome("pending", reference=claim.reference)
        pause, longest = self._options.poll_seconds
        loop = asyncio.get_running_loop()
        full_look = loop.time() + _FULL_LOOK_SECONDS
        try:
            async with asyncio.timeout(seconds):
                while True:
                    quick = loop.time() < full_look
                    made = await self._judge(claim, quick=quick)
                    if made.state != "pending":
                        return made
                    if not quick:
                        full_look = loop.time() + _FULL_LOOK_SECONDS
                    await asyncio.sleep(pause)
                    pause = min(pause * 1.5, longest)
        except TimeoutError:
            return made

    # Paying out (PayingRail)

    @property
    def payer_wallet(self) -> str:
        """The settlement wallet's address where it is ``pay_to``, so that the money is there; else empty."""
        address = "" if self.wallet is None else self.wallet.address
        return address if address.lower() == self.pay_to.lower() else ""

    async def prepare_payout(self, to: str, amount: int, nonces: Nonces) -> Intent:
        """evm_payout.py. Sends nothing. Raises ``RailUnavailable``, ``BadRequest``."""
        parts, wallet = self._ours()
        if not self.payer_wallet:
            raise RailUnavailable(detail="the settlement wallet is not pay_to")
        assert parts.sender is not None
        await parts.readiness.check()
        return await prepare_payout(
            parts.chain, parts.sender, wallet, self.asset, to, amount, nonces, gas=self._options.gas_limit
        )

    async def payout_outcome(self, claim: Claim) -> Outcome:
        """evm_payout.py's table; as many nodes must agree as for a payment."""
        parts = self._parts
        if parts is None:
            return Outcome("pending", "no rpc", claim.reference)
        chains, depth = parts.chains, self.final_depth
        return (await self._sure(claim, len(chains), lambda i: judge_payout(chains[i], claim, depth))).outcome

    # What we were paid (ScanningRail)

    @property
    def sees_chain(self) -> bool:
        """Whether there is a node to ask."""
        return self._parts is not None

    async def head_block(self) -> int:
        """The highest block that is ``confirmations`` deep. Raises ``RailUnavailable``."""
        return await head_block(self._node(), self.confirmations)

    def settled_since(self, block: int) -> AsyncGenerator[Landed]:
        """evm_scan.py: payments to ``pay_to``, as far as ``head_block``. Raises ``RailUnavailable``."""
        return settled_since(self._node(), self.asset, self.pay_to, block, self.confirmations)

    async def close(self) -> None:
        """End the background reading and close the connections."""
        if self._parts is not None and self._parts.meter is not None:
            await self._parts.meter.close()
        if self.rpc is not None:
            await self.rpc.close()

    def _node(self) -> Chain:
        if self._parts is None:
            raise RailUnavailable(detail="no rpc")
        return self._parts.chain

    def _ours(self) -> tuple[_Parts, Wallet]:
        if self._parts is None or self.wallet is None:
            raise RailUnavailable(detail="no settlement wallet")
        return self._parts, self.wallet

    async def _judge(self, claim: Claim, *, quick: bool) -> Outcome:
        parts = self._parts
        if parts is None:
            return Outcome("pending", "no rpc", claim.reference)
        verdict = await self._sure(claim, len(parts.judges), lambda i: parts.judges[i].judge(claim, quick=quick))
        if verdict.gap and parts.sender and not await parts.sender.close_gap(claim.nonce, claim.intent):
            # The claim is what remembers the gap: it ends when the gap is closed.
            return Outcome("pending", "the wallet's nonce is still unused", claim.reference)
        return verdict.outcome

    async def _sure(self, claim: Claim, places: int, look: Callable[[int], Awaitable[Verdict]]) -> Verdict:
        """What the nodes as one say (place 0), or for a high amount what enough of them say, each by itself."""
        if self._options.quorum == 1 or claim.amount < self._options.quorum_above:
            return await look(0)
        return agreed(await asyncio.gather(*map(look, range(1, places))), self._options.quorum, claim.reference)


class _Parts:
    """What a rail with a node consists of."""

    def __init__(self, rail: EvmRail, rpc: Rpc, options: EvmOptions, gas: GasPolicy | None) -> None:
        asset, wallet = rail.asset, rail.wallet
        chain_id = evm.chain_id(rail.network)
        chain = Chain(rpc)
        fees = Fees(chain, options.max_fee_per_gas or default_fee_cap(chain_id))
        limit, contract_limit = options.gas_limit, options.contract_gas_limit
        factories = options.erc6492_factories
        seconds = min(options.rpc_seconds, _VERIFY_SECONDS)
        self.verifier = Verifier(
            chain, asset, factories=factories, gas=limit, contract_gas=contract_limit, seconds=seconds
        )
        self.sender = None if wallet is None else Sender(chain, wallet, fees, chain_id)
        needed = options.reserve_settlements * limit
        self.readiness = Readiness(chain, asset, wallet, fees, needed_gas=needed)
        self.meter = None if gas is None else GasMeter(gas, chain, fees, asset, options.clock)
        self.chain = chain
        self.chains = (chain, *map(Chain, rpc.nodes))
        """The nodes as one, and then each by itself."""
        self.judges = tuple(Judge(each, self.verifier, asset, rail.final_depth) for each in self.chains)


def _asset(network: str, asset: Asset | None) -> tuple[Asset, int]:
    """The asset and the chain id of a network. A token that we don't know needs the whole ``Asset`` (B11)."""
    try:
        chain_id = evm.chain_id(network)
    except ValueError:
        raise ConfigError(f'an EVM network is written like "eip155:8453", not {network!r}') from None
    found = asset or default_asset(network)
    if found is None:
        raise ConfigError(f"no asset is known on {network}; give asset=Asset(…)")
    if found.network != network or not found.name or not found.version:
        raise ConfigError(f"the asset is not on {network}, or has no EIP-712 name and version")
    return found, chain_id
