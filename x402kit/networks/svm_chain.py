"""The Solana rail: ``exact`` by a transfer that the payer signs, and our wallet co-signs, pays for and sends.

svm_transaction.py  bytes                            svm_wallet.py   the key that co-signs
svm.py              what is decided offline          svm_reads.py    the node's calls
svm_sender.py       simulate, co-sign, send
svm_ready.py        set-up and SOL for the fees      svm_outcome.py  what became of it
svm_fees.py         the cost inside the price        svm_assets.py   Token-2022
svm_payout.py       a balance back to its owner      svm_scan.py     what we were paid, by the chain alone
svm_foreign.py      settled by a facilitator         svm_hints.py    a blockhash for payers
svm_charge.py       challenges of solana/charge
"""

from __future__ import annotations

import asyncio
import copy
import ipaddress
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from ..errors import ConfigError, RailUnavailable
from ..model import Authorization, Claim, Intent, Json, Outcome, PaymentPayload, PaymentRequirements
from ..money import Asset
from . import svm
from .assets import default_asset
from .meter import Meter
from .port import Landed, Nonces
from .rpc import Endpoint, Rpc
from .svm_charge import METHOD, charge_request
from .svm_fees import FeePolicy, Fees
from .svm_foreign import judge_foreign
from .svm_hints import Hints
from .svm_options import SvmOptions
from .svm_outcome import Judge, agreed
from .svm_payout import judge_payout, prepare_payout
from .svm_reads import Node
from .svm_ready import Readiness, token_program
from .svm_scan import Scan
from .svm_sender import Sender
from .svm_transaction import Transaction, address_bytes, address_text
from .svm_wallet import SvmWallet

__all__ = ["SvmRail"]

_DEFAULTS: Final = SvmOptions()
_RENT_MAX: Final = 3_000_000
_RECIPIENTS_MAX: Final = 1000
FINAL_DEPTH: Final = 32
"""Slots after which a block is finalized, as a rule; what decides is the node's word of it."""


class SvmRail:
    """One mint on Solana, to one recipient. Without a wallet it only reads: a facilitator then settles.

    Amounts are atomic units of ``asset``. Constructing it does no I/O and loads no package.
    """

    scheme = "exact"
    prepare_is_pure = False
    charge_method = METHOD
    final_depth = FINAL_DEPTH

    def __init__(
        self,
        network: str,
        *,
        pay_to: str,
        wallet: SvmWallet | None = None,
        rpc: Endpoint | None = None,
        confirmations: int = 0,
        fees: FeePolicy | None = None,
        asset: Asset | None = None,
        fee_payer: str = "",
        options: SvmOptions = _DEFAULTS,
    ) -> None:
        """``fee_payer``: without a wallet, who co-signs; a facilitator can say it itself. Raises ``ConfigError``."""
        self._options = options
        self.network, self.asset = network, _asset(network, asset)
        self.pay_to, self.confirmations, self.wallet = pay_to, confirmations, wallet
        self._fee_payer = fee_payer
        for what, address in (("pay_to", pay_to), ("the asset", self.asset.address), ("fee_payer", fee_payer)):
            _check_address(what, address, empty=what == "fee_payer")
        if pay_to == self.asset.address:
            raise ConfigError("pay_to is the token's own mint")
        if type(confirmations) is not int or confirmations < 0:
            raise ConfigError("confirmations is 0 for confirmed, or more for finalized")
        if rpc is None and (wallet is not None or fees is not None):
            raise ConfigError(f"{network} needs rpc=…, the address of a node")
        if options.create_recipient and (fees is None or wallet is None):
            raise ConfigError("create_recipient needs fees=FeePolicy(…) and a wallet: the price must hold the rent")
        self._program = token_program(self.asset, options.token_2022)
        self.rpc = None if rpc is None else Rpc(rpc, seconds=options.rpc_seconds)
        self._node = None if self.rpc is None else Node(self.rpc)
        if not 1 <= options.quorum <= (len(self.rpc.nodes) if self.rpc else 1):
            raise ConfigError(f"a quorum of {options.quorum} needs as many RPC addresses")
        self._local = _is_local(rpc) if options.local is None else options.local
        self._fee_policy = fees
        self._sender = None
        if self._node is not None and wallet is not None:
            self._sender = Sender(self._node, wallet, options.rpc_seconds)
        self._readiness: dict[str, Readiness] = {}
        """By recipient; shared with those that ``for_recipient`` made."""
        self._fees: Fees | None = None
        self._last_terms: svm.Terms | None = None
        self._charge_memo = ""
        self._hints: Hints | None = None
        self._meter: Meter | None = None

    @property
    def signers(self) -> tuple[str, ...]:
        """The settlement wallet's address, where there is one."""
        return () if self.wallet is None else (self.wallet.address,)

    def for_recipient(self, pay_to: str) -> SvmRail:
        """The same rail paid to another address, whose token account must exist. ``ConfigError`` for no address."""
        _check_address("pay_to", pay_to)
        if pay_to == self.asset.address:
            raise ConfigError("pay_to is the token's own mint")
        made = copy.copy(self)
        made.pay_to = pay_to
        made._meter = made._fees = made._fee_policy = made._last_terms = None
        made._options = replace(self._options, create_recipient=False)
        return made

    def charged(self, memo: str) -> SvmRail:
        """The same rail for one payment by solana/charge, whose challenge asked for ``memo``: another layout is due."""
        made = copy.copy(self)
        made._charge_memo = memo
        return made

    # What a price and a challenge need

    def extra(self) -> Json:
        """The fee payer, whom the payer's transaction names first. ``RailUnavailable`` until a facilitator said it."""
        made: Json = {"feePayer": self.fee_payer}
        if self._options.memo:
            made["memo"] = self._options.memo
        if self._fees is not None and self._fees.holds_rent:
            made["createRecipientAccount"] = True
        return made

    def charge_request(self, amount: int) -> str:
        """svm_charge.py. Empty without a wallet; while the recipient's account is missing, which the method's clients
        don't create; and with a memo of the seller's, since each of their payments needs one of its own.
        """
        if self.wallet is None or self._options.memo or (self._fees is not None and self._fees.holds_rent):
            return ""
        mint, program = self.asset.address, address_text(self._program)
        blockhash: str = self.hints().get("recentBlockhash", "")
        to = (self.pay_to, self.asset.decimals, program, self.fee_payer, blockhash)
        return charge_request(self.network, amount, mint, *to)

    def hints(self) -> Json:
        """A recent blockhash and the last height at which it can be used, where they are known."""
        return self._hints.now() if self._hints else {}

    @property
    def fee_payer(self) -> str:
        """Whoever co-signs and pays the fees."""
        if self.wallet is not None:
            return self.wallet.address
        if not self._fee_payer:
            raise RailUnavailable("facilitator_unavailable", detail="no fee payer is known yet")
        return self._fee_payer

    def payload(self, authorization: Authorization) -> Json:
        """What a facilitator is shown: the payer's transaction."""
        return svm.payload_json(authorization)

    def adopt(self, extra: Json) -> None:
        """What a facilitator says of itself in /supported: its fee payer. Raises ``ConfigError`` where it is none."""
        said = extra.get("feePayer")
        if self._fee_payer and said in (None, self._fee_payer):
            return
        if not isinstance(said, str) or not said:
            raise ConfigError("the facilitator names no fee payer; give fee_payer=…")
        if self._fee_payer:
            raise ConfigError("the facilitator's fee payer is another than fee_payer=…")
        _check_address("the facilitator's fee payer", said)
        self._fee_payer = said

    def surcharge(self) -> int:
        """Atomic units of the settlement's cost; 0 without a fee policy. ``RailUnavailable`` before a first price."""
        if self._fee_policy is None:
            return 0
        if self._meter is None:
            raise RailUnavailable(detail="no price of SOL was read yet")
        return self._meter.surcharge()

    def surcharges(self) -> tuple[int, ...]:
        """This window's surcharge first, then those whose challenges still live."""
        return self._meter.surcharges() if self._meter else (self.surcharge(),)

    # Offline

    def parse(self, payment: PaymentPayload, offer: PaymentRequirements) -> Authorization:
        """Read a Solana payload. Raises ``MalformedPayment``.

        Its ``valid_until`` is an estimate, by our clock: only the chain knows how long a blockhash lives.
        """
        return svm.parse(payment, offer, int(self._options.clock()) + svm.VALID_SECONDS)

    def check(self, authorization: Authorization, offer: PaymentRequirements, now: int) -> None:
        """The offline table of svm.py. Raises ``PaymentRefused``."""
        terms = self._terms(now)
        svm.check(authorization, offer, terms.charged(self._charge_memo) if self._charge_memo else terms)

    def _terms(self, now: int) -> svm.Terms:
        creates = self._fees is not None and self._fees.held_rent(now)
        terms = self._last_terms
        if terms is None or terms.creates is not creates:
            options = self._options
            terms = self._last_terms = svm.Terms(
                self.asset,
                self._program,
                address_bytes(self.fee_payer),
                options.relaxed,
                creates,
                options.memo,
                options.max_units,
                options.max_unit_price,
                options.max_priority_lamports,
            )
        return terms

    # With the chain

    async def start(self) -> None:
        """Compare genesis hash, mint and recipient with the set-up. Raises ``ConfigError``.

        A node that is down is no such fault: the comparison is then made before anything is sent.
        """
        if self.wallet is not None:
            _check_address("the wallet", self.wallet.address)
        if self._node is None:
            return
        readiness = self._ready_for(self._node)
        await readiness.start()
        if self._options.hint_seconds:
            self._hints = self._hints or Hints(self._node, self._options.hint_seconds)
            await self._hints.start()
        if self._fee_policy is not None:
            self._meter = self._meter or self._new_meter(self._fee_policy, self._node, readiness)
            await self._meter.refresh()
            self._meter.start()

    def _new_meter(self, policy: FeePolicy, node: Node, readiness: Readiness) -> Meter:
        creates = self._options.create_recipient
        self._fees = Fees(policy, node, readiness, self.asset, self._program, creates=creates)
        return Meter(
            self.network,
            self._cost,
            window_seconds=policy.window_seconds,
            stale_seconds=policy.stale_seconds,
            clock=self._options.clock,
        )

    async def _cost(self) -> int:
        assert self._fees is not None
        return await self._fees.cost(int(self._options.clock()))

    def _ready_for(self, node: Node) -> Readiness:
        found = self._readiness.get(self.pay_to)
        if found is None:
            options = self._options
            each = 10_000 + options.max_priority_lamports + (_RENT_MAX if options.create_recipient else 0)
            found = Readiness(
                node,
                self.asset,
                self._program,
                self.pay_to,
                "" if self.wallet is None else self.wallet.address,
                needed_lamports=each * options.reserve_settlements,
                creates=options.create_recipient,
                local=self._local,
            )
            while len(self._readiness) >= _RECIPIENTS_MAX:
                del self._readiness[next(iter(self._readiness))]
            self._readiness[self.pay_to] = found
        return found

    async def ready(self) -> None:
        """Raises ``RailUnavailable`` when the wallet could not pay for settlements now, or the price is stale."""
        if self._node is None:
            return
        await self._ready_for(self._node).check()
        if self._fee_policy is not None:
            self.surcharge()
            assert self._meter is not None
            self._meter.check()

    async def verify(self, authorization: Authorization, offer: PaymentRequirements) -> None:
        """Simulate it as the payer sent it. Raises ``PaymentRefused``, ``PaymentUsed``, ``RailUnavailable``."""
        await self._ours().verify(_transaction(authorization))

    async def prepare(self, authorization: Authorization, offer: PaymentRequirements, nonces: Nonces) -> Intent:
        """Co-sign; the reference is the transaction's signature. Sends nothing. Raises ``RailUnavailable``."""
        return await self._ours().prepare(_transaction(authorization))

    async def send(self, intent: Intent) -> Outcome:
        """Broadcast it, or the same bytes again; see svm_sender.py."""
        return await self._ours().send(intent)

    async def discard(self, intent: Intent, nonces: Nonces) -> None:
        """Nothing is held."""
        self._ours().forget(intent)

    async def outcome(self, claim: Claim) -> Outcome:
        """svm_outcome.py's table; for high amounts as many nodes must say the same as ``quorum`` asks for (I-10)."""

        async def look(node: Node) -> Outcome:
            if self.wallet is not None:
                return await self._judge(node).judge(claim)
            return await judge_foreign(self._judge(node), self._scan(node), claim, int(self._options.clock()))

        return await self._sure(claim, look)

    def _judge(self, node: Node) -> Judge:
        above = self._options.finalized_above
        return Judge(node, self._program, 100 * 10**self.asset.decimals if above is None else above)

    async def _sure(self, claim: Claim, look: Callable[[Node], Awaitable[Outcome]]) -> Outcome:
        """What the nodes as one say, or for a high amount what enough of them say, each by itself."""
        if self.rpc is None or self._node is None:
            return Outcome("pending", "no rpc", claim.reference)
        if self._options.quorum == 1 or claim.amount < self._options.quorum_above:
            return await look(self._node)
        said = await asyncio.gather(*[look(Node(each)) for each in self.rpc.nodes])
        return agreed(said, self._options.quorum, claim.reference)

    # Paying out (PayingRail)

    @property
    def payer_wallet(self) -> str:
        """The settlement wallet's address where it is ``pay_to``, so that the money is there; else empty."""
        address = "" if self.wallet is None else self.wallet.address
        return address if address == self.pay_to else ""

    async def prepare_payout(self, to: str, amount: int, nonces: Nonces) -> Intent:
        """svm_payout.py. Sends nothing. Raises ``RailUnavailable``, ``BadRequest``."""
        sender = self._ours()
        if not self.payer_wallet:
            raise RailUnavailable(detail="the settlement wallet is not pay_to")
        await self._ready_for(sender.node).check()
        return sender.remember(await prepare_payout(sender, self.asset, self._program, to, amount))

    async def payout_outcome(self, claim: Claim) -> Outcome:
        """svm_payout.py's table; as many nodes must agree as for a payment."""
        return await self._sure(claim, lambda node: judge_payout(self._judge(node), claim))

    # What we were paid (ScanningRail)

    @property
    def sees_chain(self) -> bool:
        """Whether there is a node to ask."""
        return self._node is not None

    async def head_block(self) -> int:
        """The newest slot that is confirmed. Raises ``RailUnavailable``."""
        return await self._scan(self._reader()).head()

    def settled_since(self, block: int) -> AsyncGenerator[Landed]:
        """svm_scan.py: payments to ``pay_to`` from a slot on. Raises ``RailUnavailable``."""
        return self._scan(self._reader()).since(block, self.fee_payer)

    def _reader(self) -> Node:
        if self._node is None:
            raise RailUnavailable(detail="no rpc")
        return self._node

    def _scan(self, node: Node) -> Scan:
        return Scan(node, self.network, self.asset.address, self.pay_to, self._program)

    async def wait(self, claim: Claim, seconds: float) -> Outcome:
        """``outcome`` until it is certain or the time is over; meanwhile the same bytes are sent again."""
        made = Outcome("pending", reference=claim.reference)
        pause, longest = self._options.poll_seconds
        loop = asyncio.get_running_loop()
        again = loop.time() + self._options.resend_seconds
        try:
            async with asyncio.timeout(seconds):
                while True:
                    made = await self.outcome(claim)
                    if made.state != "pending":
                        return made
                    if made.resend and loop.time() >= again:
                        await self.send(claim.prepared)
                        again = loop.time() + self._options.resend_seconds
                    await asyncio.sleep(pause)
                    pause = min(pause * 1.5, longest)
        except TimeoutError:
            return made

    async def close(self) -> None:
        """End the background reading and close the connections."""
        for each in (self._meter, self._hints):
            if each is not None:
                await each.close()
        if self.rpc is not None:
            await self.rpc.close()

    def _ours(self) -> Sender:
        if self._sender is None:
            raise RailUnavailable(detail="no settlement wallet")
        return self._sender


def _transaction(authorization: Authorization) -> Transaction:
    payment = authorization.body
    assert isinstance(payment, svm.SvmPayment)
    return payment.transaction


def _check_address(what: str, address: str, *, empty: bool = False) -> None:
    if not address and empty:
        return
    try:
        address_bytes(address)
    except ValueError:
        raise ConfigError(f"{what} is no Solana address (base58 of 32 bytes)") from None


def _asset(network: str, asset: Asset | None) -> Asset:
    """The asset of a network. A token that we don't know needs the whole ``Asset`` (B11)."""
    if not network.startswith("solana:") or len(network) != 39:
        raise ConfigError(
            f'a Solana network is written like "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", not {network!r}'
        )
    found = asset or default_asset(network)
    if found is None or found.network != network:
        raise ConfigError(f"no asset is known on {network}; give asset=Asset(…) of that network")
    return found


def _is_local(rpc: Endpoint | None) -> bool:
    """Whether all nodes are on this machine: then they may be of a chain of its own (a devnet)."""
    urls = [rpc] if isinstance(rpc, str) else list(rpc) if isinstance(rpc, Sequence) else [""]
    return all(map(_is_loopback, urls))


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
