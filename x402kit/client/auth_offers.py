"""Offers in ``WWW-Authenticate``: an invoice by L402 or by ``Payment``, and USDC on a chain by ``Payment``. Pure.

    L402 macaroon="…", invoice="lnbc…"                        Authorization: L402 <token>:<preimage>
    Payment method="lightning", intent="charge", request=…    Authorization: Payment {challenge, payload: {preimage}}
    Payment method="evm", intent="charge", request=…          Authorization: Payment {challenge, payload: {signature…}}
    Payment method="solana", intent="charge", request=…       Authorization: Payment {challenge, payload: {transaction}}

Nothing that a challenge says is believed over its invoice: amount, payment hash and expiry are read from that, and must
be what the challenge says of them (wire.md 6, 7). What does not hold together is no offer.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..model import Json, PaymentRequirements
from ..money import MAX_AMOUNT, Asset, parse_atomic
from ..networks import evm
from ..networks.lightning_port import bitcoin_on
from ..protocols import bolt11, l402, macaroon, payment_auth, payment_methods
from ..protocols.encoding import b64decode, b64encode
from ..protocols.payment_auth import PAYMENT_AUTHORIZATION, PaymentChallenge
from .challenge import Auth, Offer

__all__ = [
    "AUTHORIZATION",
    "AuthReader",
    "buys_more",
    "charge_header",
    "charge_nonce",
    "credential",
    "is_auth",
    "preimage_of",
    "reuse_of",
]

AUTHORIZATION: Final = "Authorization"
MARGIN: Final = 10
"""Seconds that an invoice or a challenge must have left, or it is not paid."""
SAT: Final = 1000
EVM_SECONDS: Final = 300
"""The life of an authorization for a challenge without an end, as the scheme's other clients have it."""

_PREIMAGE: Final = re.compile(r"[0-9a-f]{64}\Z", re.ASCII)


class AuthReader(NamedTuple):
    """What a payer can answer. ``worth``: an invoice's cost, fee and all, in millionths of a dollar; None: no node.

    ``known``: assets by network and address. ``is_free``: whether ``Authorization`` may be ours: the caller's own
    request has none. ``digest``: SHA-256 of its body, which is what a challenge must be bound to if it is to any.
    """

    known: Mapping[tuple[str, str], Asset]
    worth: Callable[[int], int] | None
    is_free: bool
    digest: bytes
    now: int

    def offers(self, lines: Sequence[str]) -> list[Offer]:
        """The challenges that can be answered, L402 first: its tokens may be good for more than one call."""
        made: list[Offer | None] = []
        challenges = payment_auth.read_challenges(lines)
        if self.worth is not None:
            made.append(self._l402(lines))
            made += [self._read(self._lightning, each) for each in challenges if _is(each, "lightning")]
        made += [self._read(self._evm, each) for each in challenges if _is(each, "evm")]
        made += [self._read(self._solana, each) for each in challenges if _is(each, "solana")]
        return [offer for offer in made if offer is not None]

    def has_invoice(self, lines: Sequence[str]) -> bool:
        """Whether any of them is an invoice."""
        return any(offer.auth is not None and offer.auth.bolt11 for offer in self.offers(lines))

    def _l402(self, lines: Sequence[str]) -> Offer | None:
        found = l402.read_challenge(lines)
        if found is None or not self.is_free:
            return None
        try:
            invoice = bolt11.decode(found.invoice)
        except ValueError:
            return None
        if (token := _macaroon(found.token)) is not None and not _is_for(token, invoice.payment_hash):
            return None
        recipe = json.dumps({"token": found.token, "scheme": found.scheme})
        return self._invoice(invoice, found.invoice, Auth(AUTHORIZATION, recipe, invoice.expires_at), "")

    def _read(
        self, read: Callable[[PaymentChallenge, Json, int | None], Offer | None], challenge: PaymentChallenge
    ) -> Offer | None:
        """None for a challenge that is not whole, is over, or wants a field that is not free."""
        try:
            expires_at = payment_auth.expiry_of(challenge)
            request = payment_auth.read_request(challenge.request)
            if (_field(challenge) == AUTHORIZATION and not self.is_free) or not self._is_ours(challenge.digest):
                return None
            return read(challenge, request, expires_at) if self._lives(expires_at) else None
        except (ValueError, KeyError, TypeError):
            return None

    def _is_ours(self, digest: str) -> bool:
        """Whether a challenge is for our body, in the spelling of RFC 9530 or of the scheme's first clients."""
        name, _, value = digest.partition("=")
        return name.lower() != "sha-256" or value.strip(":").rstrip("=") == b64encode(self.digest).rstrip("=")

    def _lives(self, expires_at: int | None) -> bool:
        return expires_at is None or expires_at > self.now + MARGIN

    def _lightning(self, challenge: PaymentChallenge, said: Json, expires_at: int | None) -> Offer | None:
        request = payment_methods.read_lightning_request(said)
        invoice = bolt11.decode(request.invoice)
        if request.amount * SAT != invoice.amount or request.payment_hash not in ("", invoice.payment_hash):
            return None
        if request.network not in ("", invoice.network):
            return None
        until = invoice.expires_at if expires_at is None else min(expires_at, invoice.expires_at)
        auth = Auth(_field(challenge), json.dumps(challenge._asdict()), until, challenge)
        return self._invoice(invoice, request.invoice, auth, challenge.description)

    def _invoice(self, invoice: bolt11.Bolt11, text: str, auth: Auth, words: str) -> Offer | None:
        amount = invoice.amount
        if not 0 < amount <= MAX_AMOUNT or not invoice.payment_hash or not self._lives(auth.expires_at):
            return None
        assert self.worth is not None
        asset = bitcoin_on(invoice.network)
        terms = PaymentRequirements("charge", invoice.network, amount, asset.address, invoice.payee, 0)
        auth = auth._replace(bolt11=text.lower().removeprefix("lightning:"), payment_hash=invoice.payment_hash)
        return Offer(None, terms, {}, asset, auth=auth, worth=self.worth(amount), words=words or invoice.description)

    def _evm(self, challenge: PaymentChallenge, said: Json, expires_at: int | None) -> Offer | None:
        request = payment_methods.read_evm_request(said)
        asset = self.known.get((f"eip155:{request.chain_id}", request.currency.lower()))
        if asset is None or request.amount == 0 or request.splits:
            return None
        seconds = EVM_SECONDS if expires_at is None else expires_at - self.now
        terms = PaymentRequirements("charge", asset.network, request.amount, asset.address, request.recipient, seconds)
        auth = Auth(_field(challenge), "", expires_at or 0, challenge)
        return Offer(None, terms, {}, asset, auth=auth, words=challenge.description)

    def _solana(self, challenge: PaymentChallenge, said: Json, expires_at: int | None) -> Offer | None:
        """None without a fee payer, too: a payer's wallet holds no SOL."""
        request = payment_methods.read_solana_request(said)
        asset = self.known.get((payment_methods.solana_network(request.network), request.mint.lower()))
        if asset is None or request.amount == 0 or request.splits or request.decimals != asset.decimals:
            return None
        from . import svm

        extra = {
            "feePayer": request.fee_payer,
            "memo": request.external_id,
            "recentBlockhash": request.recent_blockhash,
        }
        terms = PaymentRequirements("charge", asset.network, request.amount, request.mint, request.recipient, 0, extra)
        found = svm.read_terms(terms, asset, bare=False)
        if found is None or not svm.is_program_of(asset, request.token_program):
            return None
        auth = Auth(_field(challenge), "", expires_at or 0, challenge)
        return Offer(None, terms, {}, asset, found._replace(is_charge=True), auth, words=challenge.description)


def _is(challenge: PaymentChallenge, method: str) -> bool:
    return (challenge.method, challenge.intent) == (method, "charge")


def _field(challenge: PaymentChallenge) -> str:
    is_other = challenge.header.lower() == PAYMENT_AUTHORIZATION.lower()
    return PAYMENT_AUTHORIZATION if is_other else AUTHORIZATION


def _macaroon(token: str) -> macaroon.Macaroon | None:
    """None for a token of another kind: it need not be one."""
    try:
        return macaroon.parse(b64decode(token))
    except (ValueError, IndexError, binascii.Error):
        return None


def _is_for(token: macaroon.Macaroon, payment_hash: str) -> bool:
    try:
        return l402.read_identifier(token.identifier)[0].hex() == payment_hash
    except ValueError:
        return True  # another version, of which we know nothing


# What is shown


def is_auth(field: str) -> bool:
    """Whether a header is one for credentials of HTTP authentication."""
    return field in (AUTHORIZATION, PAYMENT_AUTHORIZATION)


def credential(recipe: str, preimage: str) -> str:
    """The header's value for a paid invoice, by what its row of the journal holds."""
    said: dict[str, str] = json.loads(recipe)
    if "token" in said:
        return l402.credential_header(said["token"], preimage, said["scheme"])
    return payment_auth.credential_header(PaymentChallenge(**said), {"preimage": preimage})


def preimage_of(value: str) -> str:
    """The preimage in a credential of ours; empty where there is none."""
    found: Any = value.rpartition(":")[2]
    if value.startswith("Payment "):
        try:
            found = payment_auth.parse_credential(value).payload.get("preimage")
        except ValueError:
            return ""
    return str(found) if isinstance(found, str) and _PREIMAGE.match(found) else ""


def charge_nonce(challenge: PaymentChallenge) -> bytes:
    """The nonce of an authorization for an ``evm/charge``: keccak256 of id and realm, one behind the other.

    pympp hashes a JSON array of both instead; its challenges are known by the nonce in their ``opaque``.
    """
    try:
        is_array = "_mpp_nonce" in payment_auth.read_request(challenge.opaque)
    except ValueError:
        is_array = False
    packed, array = payment_methods.evm_nonces(challenge.id, challenge.realm, evm.keccak)
    return bytes.fromhex((array if is_array else packed)[2:])


def charge_header(challenge: PaymentChallenge, payload: Json, network: str) -> tuple[str, str]:
    """Field and value that answer an ``evm/charge`` or ``solana/charge``; ``payload`` as ``exact`` has it there."""
    if "transaction" in payload:
        return _field(challenge), payment_auth.credential_header(challenge, {"type": "transaction", **payload})
    authorization: Json = payload["authorization"]
    flat = {"type": "authorization", **authorization, "signature": payload["signature"]}
    source = payment_methods.evm_source(evm.chain_id(network), authorization["from"])
    return _field(challenge), payment_auth.credential_header(challenge, flat, source)


class Reuse(NamedTuple):
    """Where else a token is good: on its ``route`` alone, or all over the origin. ``valid_until`` 0: without an end."""

    on_route: bool
    valid_until: int


def reuse_of(recipe: str, *, has_rest: bool) -> Reuse | None:
    """Whether the token of an L402 credential may be good for more calls; None where it is bound to one request.

    ``has_rest``: its payment has left a balance, which it spends all over the origin. Servers but ours sell tokens that
    stay good; a token that is no macaroon does not say.
    """
    said: dict[str, str] = json.loads(recipe)
    token = _macaroon(said.get("token", ""))
    if "token" not in said:
        return None
    pairs = [caveat.decode("utf-8", "replace").partition("=")[::2] for caveat in token.caveats] if token else []
    if not has_rest and any(name.strip() == "request" for name, _ in pairs):
        return None
    ends = [_seconds(value) for name, value in pairs if name.strip().endswith("valid_until")]
    return Reuse(not has_rest and any(name.strip() == "route" for name, _ in pairs), min(ends, default=0))


def buys_more(value: str) -> bool:
    """Whether a credential's token may be good for more calls by itself."""
    scheme, _, shown = value.partition(" ")
    is_token = scheme.upper() in ("L402", "LSAT")
    return is_token and reuse_of(json.dumps({"token": shown.rpartition(":")[0]}), has_rest=False) is not None


def _seconds(text: str) -> int:
    try:
        return parse_atomic(text.strip()) or 1
    except ValueError:
        return 1  # it has ended
