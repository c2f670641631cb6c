"""The payer: wallets, a policy and a journal, from which any number of transports are made."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Collection
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx

from ..errors import ConfigError, MissingExtra
from ..money import Usd
from ..protocols.x402 import caip2
from . import families
from .balance import Balance, BalanceSetup
from .bitcoin import BtcUsd, CoinPrice
from .core import Setup
from .journal import Journal, Payment
from .journal_calls import BalanceCall
from .lightning import LightningPayments
from .lightning_wallet import LightningWallet
from .policy import MICRO, Caps, Limits, Policy
from .prepaid import AsyncPrepaidWallet, PrepaidWallet
from .sellers import Sellers
from .transport import Approve
from .wallet_service import Operations
from .wallets import Account, AccountWallet, KeyWallet, Wallet, Wallets

if TYPE_CHECKING:
    import httpx2

    from ..networks.lightning_port import PayingNode
    from ..networks.svm_wallet import SvmKey, SvmSigner
    from . import families2
    from .svm import SolanaWallet
    from .svm_rpc import Blockhashes

__all__ = ["Payer"]

_KATANA: Final = ("kat.imgnai.com",)
WALLET_SECONDS: Final = 60.0
"""How long a wallet service may take: a withdrawal waits for the chain."""


class Payer:
    """Pays for calls by itself, within ``limits``; safe to share between threads, and its file between processes.

    ``evm_key`` (hex) or ``evm_account`` (an ``eth_account`` account) signs, and on Solana ``svm_key`` (see ``SvmKey``),
    ``svm_keypair`` (the path of a keypair's JSON file) or ``svm_signer`` (an object that signs messages, such as a
    solders ``Keypair``). With both, EVM is preferred where both are offered, or what ``limits.networks`` names first.
    ``svm_rpc``: the address of a node, asked for a blockhash where an offer brings none. ``katana_hosts``: sellers,
    beside Katana itself, whose offers on Solana name no fee payer, since the recipient is it. ``lightning``: the
    adapter of a node that pays invoices, such as ``Lnd(...)``, which belongs to the payer from then on; ``btc_usd`` is
    what a bitcoin counts against the caps, ``"97000"``, or a callable that says so; ``max_fee`` the most msat that the
    route of one payment may cost, 1 % and at least 5 sat (or what the wallet takes) if not given; ``pay_timeout``
    seconds for the node.
    ``journal`` is a file's path; without it what was signed is known only as long as the object lives. ``approve`` is
    asked before each payment is signed, sync or, in async clients, async. ``balance``: "first" pays from the prepaid
    balance where a seller keeps one, and by a payment where that is too low; "only" never by a payment; "off".
    ``ask_price``: a call from the balance asks for its price first, so that ``per_call`` holds for the first one, too.
    ``max_validity``: the most seconds that an authorization lives. ``max_signatures=2`` lets a 402 after a payment, or
    an invoice that could not be paid, lead to one more. ``retries``: how often a payment is shown again after a lost
    answer, 409 or 5xx, waiting ``backoff`` seconds and then twice that, or what Retry-After says. ``read_timeout``: the
    least seconds for a paid answer, whatever the client's own (I-12).
    Raises ``ConfigError``.
    """

    def __init__(
        self,
        evm_key: str | bytes | None = None,
        *,
        evm_account: Account | None = None,
        svm_key: SvmKey | None = None,
        svm_keypair: str | os.PathLike[str] | None = None,
        svm_signer: SvmSigner | None = None,
        svm_rpc: str | None = None,
        katana_hosts: Collection[str] = (),
        lightning: PayingNode | None = None,
        btc_usd: BtcUsd | None = None,
        max_fee: int | None = None,
        pay_timeout: float = 60.0,
        limits: Limits | None = None,
        journal: str | os.PathLike[str] | None = None,
        approve: Approve | None = None,
        balance: Balance = "off",
        ask_price: bool = False,
        allow_insecure: bool = False,
        max_validity: int = 600,
        max_signatures: int = 1,
        retries: int = 2,
        backoff: float = 0.5,
        read_timeout: float = 35.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_signatures not in (1, 2) or max_validity < 1 or retries < 0 or backoff < 0:
            raise ConfigError("max_signatures is 1 or 2; max_validity, retries and backoff are not negative")
        if balance not in ("off", "first", "only"):
            raise ConfigError(f'balance is "off", "first" or "only", not {balance!r}')
        self._approve = approve
        wallets = Wallets(
            _wallet(evm_key, evm_account),
            _solana(svm_key, svm_keypair, svm_signer),
            _node(svm_rpc),
            None if lightning is None else LightningWallet(lightning, max_fee, pay_timeout),
        )
        if not wallets.kinds:
            raise ConfigError("give a wallet: evm_key or evm_account, svm_key, svm_keypair or svm_signer, or lightning")
        limits = limits or Limits()
        price = _price(wallets, btc_usd, limits)
        policy = Policy(
            limits,
            allow_insecure=allow_insecure,
            kinds=wallets.kinds,
            has_node=wallets.node is not None,
            katana_hosts=(*_KATANA, *katana_hosts),
        )
        if balance != "off" and not policy.networks:
            raise ConfigError("a balance needs a wallet of EVM or Solana, on a network that Limits allows")
        rows = Journal(journal)

        def now() -> int:
            return int(clock())

        self._setup = Setup(
            wallets=wallets,
            policy=policy,
            journal=rows,
            clock=clock,
            asks=approve is not None,
            max_validity=max_validity,
            max_signatures=max_signatures,
            retries=retries,
            backoff=backoff,
            read_timeout=read_timeout,
            balance=BalanceSetup(balance, wallets, policy, rows, Sellers(), now, retries, backoff, ask_price=ask_price),
            lightning=None
            if wallets.lightning is None
            else LightningPayments(wallets.lightning, price, rows, now, retries, backoff),
        )

    @property
    def address(self) -> str:
        """The wallet's address; EVM's where there are two."""
        return self._setup.wallets.address

    @property
    def addresses(self) -> tuple[str, ...]:
        """Each wallet's address, EVM's first; a Lightning node is ``"lightning"``."""
        return self._setup.wallets.addresses

    def transport(self, inner: httpx.BaseTransport | None = None) -> families.PayingTransport:
        """For ``httpx.Client``; wraps ``inner``, whose settings stay, or a fresh ``httpx.HTTPTransport()``."""
        return families.PayingTransport(self._setup, self._approve, inner)

    def async_transport(self, inner: httpx.AsyncBaseTransport | None = None) -> families.AsyncPayingTransport:
        """For ``httpx.AsyncClient``."""
        return families.AsyncPayingTransport(self._setup, self._approve, inner)

    def httpx2_transport(self, inner: httpx2.BaseTransport | None = None) -> families2.PayingTransport:
        """For ``httpx2.Client``, and so for ``openai.OpenAI(http_client=...)``. Raises ``MissingExtra``."""
        _need_httpx2()
        from . import families2

        return families2.PayingTransport(self._setup, self._approve, inner)

    def async_httpx2_transport(self, inner: httpx2.AsyncBaseTransport | None = None) -> families2.AsyncPayingTransport:
        """For ``httpx2.AsyncClient``. Raises ``MissingExtra``."""
        _need_httpx2()
        from . import families2

        return families2.AsyncPayingTransport(self._setup, self._approve, inner)

    def wallet(self, base_url: str, client: httpx.Client | None = None, *, network: str = "") -> PrepaidWallet:
        """The balance at the seller whose wallet service is at ``base_url``, such as ``https://api.example.com/v1/x402``.

        ``client`` must have a transport of this payer; without one it has its own, to be closed (``with``).
        ``network``: the one whose wallet is meant (CAIP-2, or v1's short name), for a payer with two: their balances
        are two. Without it EVM's is, or the one of the kind that ``limits.networks`` names first. Raises
        ``ConfigError`` for one that there is no wallet for.
        """
        operations = self._operations(network)
        made = client or httpx.Client(transport=self.transport(), timeout=WALLET_SECONDS)
        return PrepaidWallet(base_url, operations, made, owns=client is None)

    def async_wallet(
        self, base_url: str, client: httpx.AsyncClient | None = None, *, network: str = ""
    ) -> AsyncPrepaidWallet:
        """The same, asynchronously."""
        operations = self._operations(network)
        made = client or httpx.AsyncClient(transport=self.async_transport(), timeout=WALLET_SECONDS)
        return AsyncPrepaidWallet(base_url, operations, made, owns=client is None)

    def _operations(self, network: str) -> Operations:
        wallets, policy = self._setup.wallets, self._setup.policy
        named = caip2(network)
        if not policy.networks or (network and named not in policy.networks):
            raise ConfigError(f"this payer has no wallet for the network {network!r}, or Limits does not allow it")
        if not network and len(wallets.kinds) > 1:
            named = policy.networks[0].partition(":")[0]
        return Operations(wallets.address_on(named) if named else wallets.address, policy.known, named)

    def spent_this_hour(self) -> Usd:
        """Dollars counted in this UTC hour, payments with an open outcome included."""
        return self._spent(0)

    def spent_today(self) -> Usd:
        """Dollars counted on this UTC day, payments with an open outcome included."""
        return self._spent(1)

    def _spent(self, period: int) -> Usd:
        journal, now = self._setup.journal, self._setup.now()
        micros = sum(journal.spent(address, now)[period] for address in self.addresses)
        return Usd(Decimal(micros).scaleb(-MICRO))

    def payments(self, *, only_open: bool = False) -> list[Payment]:
        """The journal's rows, oldest first; ``only_open``: those whose outcome is not certain."""
        return self._setup.journal.payments(only_open=only_open)

    def balance_calls(self, *, only_open: bool = False) -> list[BalanceCall]:
        """The journal's calls from a balance, oldest first; ``only_open``: those whose outcome is not certain."""
        return self._setup.journal.calls(only_open=only_open)

    def give_up(self, reference: str) -> None:
        """Show an open payment, or use an open call's key, no more. A payment's budget stays counted; the next
        identical call signs anew, or is charged anew."""
        self._setup.journal.finish(reference, "given up", self._setup.now())
        self._setup.journal.end_call(reference, "given up", self._setup.now())

    def close(self) -> None:
        """Close the journal, and the nodes' connections. Transports that still use it fail before they sign."""
        self._setup.journal.close()
        if self._setup.wallets.node is not None:
            self._setup.wallets.node.close()
        if self._setup.wallets.lightning is not None:
            self._setup.wallets.lightning.close()


def _wallet(key: str | bytes | None, account: Account | None) -> Wallet | None:
    if key is not None and account is not None:
        raise ConfigError("give either evm_key or evm_account")
    if account is not None:
        return AccountWallet(account)
    return None if key is None else KeyWallet(key)


def _price(wallets: Wallets, btc_usd: BtcUsd | None, limits: Limits) -> CoinPrice:
    caps = Caps.of(limits)
    is_capped = (caps.call, caps.hour, caps.day) != (None, None, None)
    if wallets.lightning is not None and btc_usd is None and is_capped:
        raise ConfigError(
            "caps are in dollars: btc_usd, the price of a bitcoin, says what a payment on Lightning counts"
        )
    return CoinPrice(btc_usd)


def _solana(
    key: SvmKey | None, keypair: str | os.PathLike[str] | None, signer: SvmSigner | None
) -> SolanaWallet | None:
    given = sum(each is not None for each in (key, keypair, signer))
    if given == 0:
        return None
    if given > 1:
        raise ConfigError("give one of svm_key, svm_keypair, svm_signer")
    from .svm import SolanaWallet

    return SolanaWallet(key if keypair is None else Path(keypair), signer)


def _node(url: str | None) -> Blockhashes | None:
    if url is None:
        return None
    from .svm_rpc import Blockhashes

    return Blockhashes(url)


def _need_httpx2() -> None:
    if importlib.util.find_spec("httpx2") is None:
        raise MissingExtra("httpx2", "httpx2")
