"""What the payer may pay: caps, networks, assets, hosts. Pure; nothing that a seller writes changes it (M05, M08).

Order of the decisions about a 402 that is for us, each before anything is signed:

    1  https, and no private or loopback address        PolicyRefused (M09)
    2  the host is allowed; a redirect stays at home    PolicyRefused (M06)
    3  an offer in an allowed network and asset         NothingPayable
    4  the first of them within ``per_call``            TooDear (M01)
    5  the ``approve`` callback                         PolicyRefused (M08)
    6  ``per_hour`` and ``per_day``, with the journal   TooDear (M04)

Caps are in dollars, and every asset but bitcoin is taken as worth a dollar: the table in networks/assets.py holds only
such, and so must the ``Asset`` values that a caller adds. Bitcoin counts at the price that the payer was given
(bitcoin.py), together with the most that the route may cost. An amount is rounded up to a millionth of a dollar, a cap
down.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR
from typing import Final

from ..errors import ConfigError, NothingPayable, PolicyRefused, TooDear
from ..money import MAX_AMOUNT, Asset, format_units, usd
from ..networks.assets import DEFAULTS
from ..networks.lightning_port import BITCOIN, REGTEST, SIGNET, TESTNET, bitcoin_on, is_lightning
from ..protocols.x402 import caip2
from .challenge import Offer

__all__ = ["Caps", "Limits", "Policy", "Proposal", "Target", "origin_of", "route_of"]

MICRO: Final = 6
"""Budgets are counted in millionths of a dollar."""
TEXT_MAX: Final = 500
LIGHTNING: Final = "lightning"
"""In ``Limits.networks``: whichever of Bitcoin's networks the node is on."""
_TRANSLATED: Final = {int(ipaddress.IPv6Address(each)) >> 32 for each in ("::", "64:ff9b::", "::ffff:0:0:0")}
"""Prefixes of IPv6 before an IPv4 address that is meant (RFC 4291, 6052, 2765)."""
_COINS: Final = {network: bitcoin_on(network) for network in (BITCOIN, TESTNET, SIGNET, REGTEST)}


@dataclass(frozen=True, slots=True)
class Limits:
    """The payer's policy.

    ``per_call``, ``per_hour``, ``per_day``: dollars such as ``"$0.05"``, None for no cap; hours and days are UTC's.
    ``hosts``: names, with or without a port; None allows any. ``networks``: CAIP-2, v1's short names, or
    ``"lightning"``; a payer with more wallets than one prefers EVM's, then Solana's, or the kind of the first network
    here. ``assets``: symbols (``"BTC"`` on Lightning) or addresses of known assets, or a whole ``Asset`` (worth a
    dollar) that we don't know. Raises ``ConfigError``.
    """

    per_call: str | None = "$0.10"
    per_hour: str | None = None
    per_day: str | None = None
    hosts: Sequence[str] | None = None
    networks: Sequence[str] | None = None
    assets: Sequence[str | Asset] | None = None

    def __post_init__(self) -> None:
        for name in ("hosts", "networks", "assets"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(f"Limits.{name} is a list, not one text")
        Caps.of(self)


@dataclass(frozen=True, slots=True)
class Caps:
    """``Limits``' caps in millionths of a dollar."""

    call: int | None
    hour: int | None
    day: int | None

    @classmethod
    def of(cls, limits: Limits) -> Caps:
        return cls(_micros(limits.per_call), _micros(limits.per_hour), _micros(limits.per_day))


def _micros(cap: str | None) -> int | None:
    if cap is None:
        return None
    micros = int(usd(cap).value.scaleb(MICRO).to_integral_value(ROUND_FLOOR))
    return min(micros, MAX_AMOUNT // 2)


def micros_of(offer: Offer) -> int:
    """What an offer counts against the caps."""
    return to_micros(offer.terms.amount, offer.asset) if offer.worth is None else offer.worth


def to_micros(amount: int, asset: Asset) -> int:
    """Atomic units of a dollar asset in millionths of a dollar, rounded up."""
    unit: int = 10**asset.decimals
    return -(-amount * 10**MICRO // unit)


def route_of(method: str, url: str) -> str:
    """A method and a URL without its query."""
    return f"{method} {url.partition('?')[0]}"


def origin_of(url: str) -> str:
    """Scheme, host and port of a ``Target``'s URL."""
    return "/".join(url.split("/", 3)[:3])


@dataclass(frozen=True, slots=True)
class Target:
    """What the policy and the journal know of a request. ``url`` has neither user info nor fragment."""

    method: str
    url: str
    host: str
    port: int | None
    secure: bool
    fingerprint: bytes
    origin: str
    first_origin: str
    """Where the caller's call began, before the client followed redirects."""
    key: str = ""
    """The caller's own Idempotency-Key."""
    top_up: int | None = None
    """For a top-up that the caller asked for: the most that it may cost, in place of ``per_call``, in micros."""
    proves: bool = False
    """A call to a wallet service, which takes a proof alone."""
    network: str = ""
    """Where it must be paid or proved: a namespace, or a network (CAIP-2). Empty: wherever the policy allows."""
    authorized: bool = False
    """Whether the caller's own request has an ``Authorization``, which stays."""
    digest: bytes = b""
    """SHA-256 of its body."""
    paid: str = ""
    """The payment of the same call whose answer led here: no other is signed for it."""

    @property
    def route(self) -> str:
        """What is remembered of prices."""
        return route_of(self.method, self.url)

    @property
    def reads(self) -> bool:
        """Whether there is nothing that may not happen twice."""
        return self.proves and self.method == "GET"


@dataclass(frozen=True, slots=True)
class Proposal:
    """What ``approve`` is asked. All is parsed and checked, but ``description``, which is the seller's own words."""

    amount: int
    asset: Asset
    network: str
    pay_to: str
    method: str
    host: str
    url: str
    description: str

    @property
    def price(self) -> str:
        """For people, such as ``0.010000 USDC``."""
        return f"{format_units(self.amount, self.asset.decimals)} {self.asset.symbol}"


class Policy:
    """``Limits``, made ready. Raises ``ConfigError`` for a network or an asset that we don't know."""

    def __init__(
        self,
        limits: Limits,
        *,
        allow_insecure: bool = False,
        kinds: Sequence[str] = ("eip155",),
        has_node: bool = False,
        katana_hosts: Collection[str] = (),
    ) -> None:
        """``kinds``: the namespaces that there is a wallet for. ``has_node``: whether one can say a blockhash.

        ``katana_hosts``: whose offers on Solana name no fee payer, since the recipient is it.
        """
        self.caps = Caps.of(limits)
        self._has_node = has_node
        self._katana_hosts = frozenset(host.lower() for host in katana_hosts)
        self._allow_insecure = allow_insecure
        self._hosts = None if limits.hosts is None else frozenset(host.lower() for host in limits.hosts)
        added = [asset for asset in limits.assets or () if isinstance(asset, Asset)]
        assets = (asset for asset in (*DEFAULTS.values(), *_COINS.values(), *added) if _kind(asset.network) in kinds)
        self.known = {_key(asset): asset for asset in assets}
        self._allowed = self._filter(limits)
        named = _named_networks(limits) or list(DEFAULTS)
        allowed = {network for network, _ in self._allowed if not is_lightning(network)}
        self.networks = tuple(network for network in dict.fromkeys(named) if network in allowed) or tuple(
            sorted(allowed)
        )
        """CAIP-2, whose wallets may prove themselves; the first is meant where a seller does not say."""
        preferred = dict.fromkeys(_kind(network) for network in _named_networks(limits) or kinds)
        self._ranks = {kind: rank for rank, kind in enumerate(preferred)}

    def _filter(self, limits: Limits) -> frozenset[tuple[str, str]]:
        keys = set(self.known)
        if limits.networks is not None:
            networks = set(_named_networks(limits))
            if not networks <= {network for network, _ in keys}:
                raise ConfigError(f"no wallet, or no asset, is known for some of the networks {sorted(networks)}")
            keys = {key for key in keys if key[0] in networks}
        if limits.assets is not None:
            keys = {key for asset in limits.assets for key in self._named(asset) if key in keys}
        return frozenset(keys)

    def _named(self, asset: str | Asset) -> list[tuple[str, str]]:
        if isinstance(asset, Asset):
            return [_key(asset)]
        found = [key for key, known in self.known.items() if asset.lower() in (key[1], known.symbol.lower())]
        if not found:
            raise ConfigError(f"asset {asset!r} is not known; give it as an Asset")
        return found

    def allows_host(self, host: str, port: int | None) -> bool:
        """Whether a host is in ``hosts``, where those are set."""
        return self._hosts is None or host in self._hosts or f"{host}:{port}" in self._hosts

    def names_host(self, host: str, port: int | None) -> bool:
        """Whether ``hosts`` are set, and this is one of them."""
        return self._hosts is not None and self.allows_host(host, port)

    def is_katana(self, target: Target) -> bool:
        """Whether the seller speaks Katana's dialect."""
        return target.host in self._katana_hosts or f"{target.host}:{target.port}" in self._katana_hosts

    def networks_for(self, target: Target) -> tuple[str, ...]:
        """Those of ``networks`` on which a call may be proved."""
        return tuple(network for network in self.networks if _is_on(network, target.network))

    def permits(self, target: Target) -> bool:
        """Whether ``check_target`` lets it pass."""
        try:
            self.check_target(target)
        except PolicyRefused:
            return False
        return True

    def asset_on(self, network: str) -> Asset | None:
        """The asset that a balance on a network is taken to be in: the one that dollars mean there, or else the only
        one that the caller has added."""
        found = [asset for key, asset in self.known.items() if key[0] == network and network not in _COINS]
        return DEFAULTS.get(network) or (found[0] if len(found) == 1 else None)

    def over_call_cap(self, amount: int | None, asset: Asset | None) -> bool:
        """Whether a call from the balance could cost more than ``per_call``."""
        if amount is None or asset is None or self.caps.call is None:
            return False
        return to_micros(amount, asset) > self.caps.call

    def check_target(self, target: Target) -> None:
        """Decisions 1 and 2 of the table. Raises ``PolicyRefused``."""
        if not self._allow_insecure and not target.secure:
            raise PolicyRefused("no payment over plain http; allow_insecure=True permits it")
        if not self._allow_insecure and _is_private(target.host):
            raise PolicyRefused(f"no payment to a private address, {target.host}; allow_insecure=True permits it")
        if not self.allows_host(target.host, target.port):
            raise PolicyRefused(f"the host {target.host} is not in Limits.hosts")
        if self._hosts is None and target.origin != target.first_origin:
            raise PolicyRefused(f"redirected from {target.first_origin} to {target.origin}; Limits.hosts can permit it")

    def choose(self, offers: Sequence[Offer], target: Target) -> Offer:
        """Decisions 3 and 4: EVM, Solana, Lightning unless ``Limits.networks`` says otherwise, and then the order of
        ``offers``.

        Raises ``NothingPayable``, ``TooDear``.
        """
        allowed = [offer for offer in offers if _key(offer.asset) in self._allowed]
        allowed = [offer for offer in allowed if _is_on(offer.terms.network, target.network)]
        if not allowed:
            raise NothingPayable("no offer is in a network and an asset that Limits allows")
        for offer in sorted(allowed, key=self._rank):
            if self._affordable(offer, target.top_up if target.top_up is not None else self.caps.call):
                return offer
        cheapest = min(micros_of(offer) for offer in allowed)
        limit = "Limits.per_call" if target.top_up is None else f"${format_units(target.top_up, MICRO)}"
        raise TooDear(f"the price ${format_units(cheapest, MICRO)} is above {limit}")

    def _rank(self, offer: Offer) -> tuple[bool, int, bool]:
        needs_node = offer.solana is not None and not offer.solana.blockhash
        kind = self._ranks.get(_kind(offer.terms.network), len(self._ranks))
        # The same on the same chain stands beside it as a challenge of Payment, and that we answer in full.
        is_second = offer.challenge is not None and offer.challenge.is_bound_by_mppx
        return needs_node and not self._has_node, kind, is_second

    def _affordable(self, offer: Offer, cap: int | None) -> bool:
        amount = offer.terms.amount
        micros = micros_of(offer)
        return amount <= MAX_AMOUNT and micros <= MAX_AMOUNT // 2 and (cap is None or micros <= cap)


def proposal(offer: Offer, target: Target) -> Proposal:
    """What decision 5 is asked about."""
    terms = offer.terms
    words = "".join(char if char.isprintable() else " " for char in offer.description[:TEXT_MAX])
    where = (target.method, target.host, target.url)
    return Proposal(terms.amount, offer.asset, terms.network, terms.pay_to, *where, words)


def _named_networks(limits: Limits) -> list[str]:
    named: list[str] = []
    for network in limits.networks or ():
        named += list(_COINS) if network == LIGHTNING else [caip2(network)]
    return named


def _kind(network: str) -> str:
    return network.partition(":")[0]


def _is_on(network: str, wanted: str) -> bool:
    return wanted in ("", network, _kind(network))


def _key(asset: Asset) -> tuple[str, str]:
    return asset.network, asset.address.lower()


def _is_private(host: str) -> bool:
    """Loopback, private, link-local and the like, when written as an address; names are not resolved."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _ip(name.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if int(address) >> 32 in _TRANSLATED else None
        address = address.ipv4_mapped or address.sixtofour or last or address
    return address is not None and (not address.is_global or address.is_multicast)


def _ip(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        pass
    try:  # the spellings that a resolver takes too: 127.1, 0x7f000001, 2130706433
        return ipaddress.IPv4Address(socket.inet_aton(name))
    except (OSError, UnicodeError):
        return None
