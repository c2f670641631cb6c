"""What a wallet proof is worth: every field that we issued or are is compared, and the signature verified (group F).

                  siwx (the extension)        venice                      katana
    who we are    domain and URI: the configured origin's, exactly        the service's name stands in the text
    nonce         ours, for this URI          the client's                the client's, or the text's digest
    the text      ours to the last byte       statement is free           free; what it names is compared
    age           to its expiry + leeway      5 minutes, 30 s ahead       5 minutes, 30 s ahead

Signatures: EIP-191 by the address's own key (65 bytes, low s), else the contract there is asked (EIP-1271); ed25519
for Solana. A proof that was good is remembered by its digest until its window ends; what a contract said, for half a
minute (F07). That a proof spends only once (F01) is the ledger's part: it stores ``nonce_id`` until ``until``.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from ..errors import ConfigError, ProofRefused, RailUnavailable
from ..model import CHALLENGE_SECONDS, LEEWAY_SECONDS, Json
from ..networks import ed25519
from ..networks.port import ContractWallets, ProvesWallets, Rail
from ..protocols.base58 import b58decode
from ..protocols.siwx import Dialect, Proof, SignIn, parse_proof
from ..protocols.siwx_katana import names
from .proof_challenge import ProofChallenges, is_same_origin

__all__ = ["Proofs", "Proven", "wallets_of"]

_AGE_MAX: Final = CHALLENGE_SECONDS
_MARGIN: Final = 60
"""Seconds that a nonce is remembered beyond its window, for clocks that differ or step back (C07, J07)."""
_CONTRACT_SECONDS: Final = 30
_REMEMBERED_MAX: Final = 4096
_ASKING_MAX: Final = 32
"""Contract wallets asked at a time: each costs a call to the node, and anyone can show such a proof (K03)."""
_SERVICE: Final = re.compile(r"[!-~](?:[ -~]{0,62}[!-~])?")
_NETWORK: Final = re.compile(r"(?:eip155:[1-9][0-9]{0,18}|solana:[-_a-zA-Z0-9]{1,32})", re.ASCII)
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


class Proven(NamedTuple):
    """A wallet that proved itself. ``owner`` is its account's: network and address (EVM in lower case).

    ``nonce_id`` is what one spend uses up; it must be remembered until ``until`` (Unix seconds).
    """

    owner: str
    network: str
    address: str
    nonce_id: str
    until: int
    dialect: Dialect


class _Remembered(NamedTuple):
    proven: Proven
    good_until: int
    by_contract: bool


def wallets_of(rails: Iterable[Rail]) -> dict[str, ContractWallets]:
    """Who can be asked about contract wallets, by network."""
    found: dict[str, ContractWallets] = {}
    for rail in rails:
        if isinstance(rail, ProvesWallets) and rail.contract_wallets is not None:
            found.setdefault(rail.network, rail.contract_wallets)
    return found


class Proofs:
    """Issues challenges for wallet proofs and verifies proofs, for one service at one origin.

    ``networks`` are CAIP-2. Without an ``origin`` there is no domain to compare: no challenge is offered, and only the
    Katana dialect is accepted, which knows us by ``service``. ``secrets`` as for ``Quotes``. Raises ``ConfigError``,
    and ``MissingExtra`` where EVM proofs could not be verified.
    """

    def __init__(
        self,
        *secrets: bytes,
        service: str,
        origin: str,
        networks: Sequence[str],
        contract_wallets: Mapping[str, ContractWallets] | None = None,
        resources: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not _SERVICE.fullmatch(service) or not re.search("[0-9A-Za-z]", service):
            raise ConfigError("the service's name is 1 to 64 printable ASCII characters")
        for network in networks:
            if not _NETWORK.fullmatch(network):
                raise ConfigError(f"no wallet proofs are known for the network {network!r}")
        if any(network.startswith("eip155:") for network in networks):
            from ..networks.evm_message import need_extra  # a rail's module is loaded when it is needed

            need_extra()
        self._service, self._origin = service, _normal(origin)
        self._scheme, _, self._domain = self._origin.partition("://")
        self._networks = frozenset(networks)
        self._wallets = dict(contract_wallets or {})
        self._clock = clock
        name = re.sub(r"[^A-Za-z0-9 ._:/@-]", "", service)
        self._challenges = ProofChallenges(
            secrets,
            origin=self._origin,
            networks=networks,
            statement=f"Prove to {name} that this wallet is yours, to use its prepaid balance.",
            resources=resources,
        )
        self._remembered: dict[bytes, _Remembered] = {}
        self._asking = 0

    def challenge_text(self, now: int, url: str) -> str:
        """The challenge for a request's URL as JSON text; empty where none is offered. Stores nothing."""
        return self._challenges.text(now, url) if self._origin and self._networks else ""

    def challenge(self, now: int, url: str) -> Json:
        """The same as a dict, empty where none is offered."""
        made: Json = json.loads(self.challenge_text(now, url) or "{}")
        return made

    async def verify(self, raw: bytes, *, fresh: bool = False) -> Proven:
        """Whose wallet a header's value proves. ``fresh`` asks a contract wallet again, for what matters most (F07).

        Raises ``MalformedPayment``, ``ProofRefused``, ``RailUnavailable`` (a contract wallet could not be asked).
        Nothing is charged or spent by it.
        """
        key = hashlib.sha256(raw).digest()
        now = int(self._clock())
        known = self._remembered.pop(key, None)
        if known is not None and now <= known.good_until and not (fresh and known.by_contract):
            self._remembered[key] = known  # the one used last goes last
            return known.proven
        proof = parse_proof(raw)
        good_until = self._check(proof, now)
        by_contract = await self._by_contract(proof)
        if by_contract:
            good_until = min(good_until, now + _CONTRACT_SECONDS)
        proven = _proven(proof)
        while len(self._remembered) >= _REMEMBERED_MAX:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[key] = _Remembered(proven, good_until, by_contract)
        return proven

    def _check(self, proof: Proof, now: int) -> int:
        """All but the signature. The last second at which the proof is good."""
        if proof.network not in self._networks:
            raise ProofRefused("invalid_siwx_unsupported_chain")
        if proof.dialect == "katana":
            self._check_service(proof)
        else:
            self._check_origin(proof)
        if proof.dialect == "siwx":
            self._check_issued(proof)
        return _window(proof, now)

    def _check_origin(self, proof: Proof) -> None:
        if not self._origin or proof.domain != self._domain or proof.scheme not in ("", self._scheme):
            raise ProofRefused("invalid_siwx_domain_mismatch")
        if not is_same_origin(proof.uri, self._origin):
            raise ProofRefused("invalid_siwx_uri_mismatch")

    def _check_service(self, proof: Proof) -> None:
        if not names(proof.message.decode(), self._service) or proof.domain not in ("", self._domain):
            raise ProofRefused("invalid_siwx_domain_mismatch")
        if proof.uri and not (self._origin and is_same_origin(proof.uri, self._origin)):
            raise ProofRefused("invalid_siwx_uri_mismatch")

    def _check_issued(self, proof: Proof) -> None:
        """The text is the one that we asked for, for this address (F05)."""
        ours = self._challenges
        expiry = ours.expiry(proof.nonce, proof.uri)
        if expiry is None:
            raise ProofRefused("invalid_siwx_nonce")
        if proof.issued_at != expiry - CHALLENGE_SECONDS:
            raise ProofRefused("invalid_siwx_issued_at")
        if proof.expires_at != expiry:
            raise ProofRefused("invalid_siwx_expiration_time")
        if proof.not_before is not None:
            raise ProofRefused("invalid_siwx_not_before")
        issued_at, expiration_time = ours.times(expiry)
        wanted = SignIn(
            proof.type == "ed25519",
            ours.domain,
            proof.spelling,
            proof.uri,
            "1",
            proof.chain_id,
            proof.nonce.lower(),
            issued_at,
            expiration_time,
            statement=ours.statement,
            resources=ours.resources,
        )
        if wanted.text().encode() != proof.message:
            raise ProofRefused("invalid_siwx_nonce", detail="not the text that was issued with this nonce")

    async def _by_contract(self, proof: Proof) -> bool:
        """Verify the signature. Whether it was a contract that said so."""
        if proof.type == "ed25519":
            good, asked = ed25519.is_signature(b58decode(proof.address), proof.message, proof.signature), False
        else:
            from ..networks.evm_message import is_signed_by, message_digest

            digest = message_digest(proof.message)
            asked = not is_signed_by(proof.address, digest, proof.signature)
            good = not asked or await self._ask(proof, digest)
        if not good:
            raise ProofRefused("invalid_siwx_signature")
        return asked

    async def _ask(self, proof: Proof, digest: bytes) -> bool:
        wallets = self._wallets.get(proof.network)
        if wallets is None:
            return False
        if self._asking >= _ASKING_MAX:
            raise RailUnavailable(detail="too many contract wallets are being asked")
        self._asking += 1
        try:
            return await wallets.is_valid_signature(proof.address, digest, proof.signature)
        finally:
            self._asking -= 1


def _window(proof: Proof, now: int) -> int:
    """The last second at which the proof is good. Raises ``ProofRefused`` where it is not good now."""
    last = proof.issued_at + _AGE_MAX + (LEEWAY_SECONDS if proof.dialect == "siwx" else 0)
    if now > last:
        raise ProofRefused("invalid_siwx_issued_at_too_old")
    if proof.issued_at > now + LEEWAY_SECONDS:
        raise ProofRefused("invalid_siwx_issued_at_in_future")
    if proof.expires_at is not None:
        last = min(last, proof.expires_at + LEEWAY_SECONDS)
        if now > last:
            raise ProofRefused("invalid_siwx_expired")
    if proof.not_before is not None and proof.not_before > now + LEEWAY_SECONDS:
        raise ProofRefused("invalid_siwx_not_yet_valid")
    return last


def _proven(proof: Proof) -> Proven:
    owner = f"{proof.network}:{proof.address}"
    # A text that names no network could be shown for each of them: it still spends once.
    scope = owner if proof.names_network else f"{proof.network.partition(':')[0]}:*:{proof.address}"
    until = proof.issued_at + _AGE_MAX + LEEWAY_SECONDS + _MARGIN
    return Proven(owner, proof.network, proof.address, f"{scope}:{proof.nonce}", until, proof.dialect)


def _normal(origin: str) -> str:
    """An origin as URLs spell it: lower case, no default port."""
    if not origin:
        return ""
    parts = urlsplit(origin)
    odd = "@" in parts.netloc or parts.path not in ("", "/") or parts.query or parts.fragment
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or odd:
        raise ConfigError(f'the origin is written like "https://api.example.com", not {origin!r}')
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(_DEFAULT_PORTS[parts.scheme])}"
