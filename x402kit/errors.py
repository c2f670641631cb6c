"""Every error the library raises, in one tree.

    X402KitError
      ConfigError               the seller's or payer's set-up is wrong; raised at start
        MissingExtra            a rail's packages are not installed
        LedgerUnreachable       a ledger's database that does not answer at the start
        WrongChain              a node is on another chain than its rail
        NodeUnreachable         a Lightning node that does not answer at the start; it may be there later
        UnmatchedRule           a price names no route of the app (A10)
        Unguarded               a priced endpoint ran without the gate; it refuses
      ServerError               what the gate answers to a caller; each has a status and a code
        BadRequest          400 the request can't be priced
          MalformedPayment  400 the credential can't be read, or two of them came
        ProofRefused        401 the wallet proof is not good; certain that nothing was charged
        PaymentRefused      402 certain that no money moved; a fresh challenge goes with it
          InsufficientBalance 402 the balance is below the quote; the offer is a top-up
        PaymentUsed         403 the payment is spent, or bound to another request
          ProofUsed         403 the wallet proof has been spent (F01)
        LinkRefused         403 a signed link has expired, or is none of ours
        RequestTimeout      408 the body did not arrive in time
        PaymentInProgress   409 the same payment is being processed now
        IdempotencyMismatch 409 the idempotency key belongs to another request (C06)
        BodyTooLarge        413
        TooManyRequests     429
        HeaderTooLarge      431
        RailUnavailable     503 chain, facilitator or store out of reach, before anything was sent
        OutcomeUnknown      504 money may have moved; the same payment must be shown again
      HoldEnded                 the hold was captured, voided or expired before; nothing moved (E05)
      PayerError                what the paying client raises
        NothingPayable          no offer passes the policy's networks and assets
        PolicyRefused           a rule or the callback said no; nothing was signed
          TooDear               an amount is above a cap; nothing was signed
          BalanceTooLow         the prepaid balance is too low, and nothing else may be used; nothing was charged
        PaymentNotAccepted      the server certainly refused a signed payment
        ProofNotAccepted        the server refused our wallet proofs; nothing was charged
        PaymentOutcomeUnknown   signed and sent, and no certain answer; show it again, do not sign anew
        UnreplayableBody        a streaming body can't be sent twice; refused before any I/O (M11)
        WalletServiceError      a wallet service said no, or nothing that can be read

``money`` says whether money moved: "no", "yes" or "unknown". A server error becomes an answer by the status
contract in docs/concepts.md; only ``PaymentRefused`` may carry a fresh challenge.
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "BadRequest",
    "BalanceTooLow",
    "BodyTooLarge",
    "ConfigError",
    "HeaderTooLarge",
    "HoldEnded",
    "IdempotencyMismatch",
    "InsufficientBalance",
    "LedgerUnreachable",
    "LinkRefused",
    "MalformedPayment",
    "MissingExtra",
    "NodeUnreachable",
    "NothingPayable",
    "OutcomeUnknown",
    "PayerError",
    "PaymentInProgress",
    "PaymentNotAccepted",
    "PaymentOutcomeUnknown",
    "PaymentRefused",
    "PaymentUsed",
    "PolicyRefused",
    "ProofNotAccepted",
    "ProofRefused",
    "ProofUsed",
    "RailUnavailable",
    "RequestTimeout",
    "ServerError",
    "TooDear",
    "TooManyRequests",
    "Unguarded",
    "UnmatchedRule",
    "UnreplayableBody",
    "WalletServiceError",
    "WrongChain",
    "X402KitError",
]

MoneyMoved = Literal["no", "yes", "unknown"]


class X402KitError(Exception):
    """The root; catch it to catch all."""

    money: MoneyMoved = "no"


class ConfigError(X402KitError):
    """The set-up is wrong; nothing runs until it is mended."""


class MissingExtra(ConfigError):
    """A rail needs packages that are not installed."""

    def __init__(self, extra: str, package: str) -> None:
        self.extra = extra
        super().__init__(f"{package} is missing; install it with: pip install 'x402kit-asgi[{extra}]'")


class LedgerUnreachable(ConfigError):
    """The ledger's database does not answer at the start: a wrong host or port, or it is down. Nothing was read."""


class NodeUnreachable(ConfigError):
    """No answer from a Lightning node at the start: a wrong address, or it is down. A paywall asks it again."""


class WrongChain(ConfigError):
    """A node is on another chain than the rail that asks it. Nothing is settled there."""


class UnmatchedRule(ConfigError):
    """A price is set for something that is no route of the app."""


class Unguarded(ConfigError):
    """A priced endpoint was reached without its payment: the gate is not around the app. The endpoint did not run."""


class ServerError(X402KitError):
    """What a caller is answered. ``reason`` is a published reason string; it never holds secrets or upstream text."""

    status: int = 500
    code: str = "internal-error"
    hint: str = ""
    retry_after: int | None = None

    def __init__(self, reason: str = "", *, reference: str = "", detail: str = "") -> None:
        self.reason = reason or self.code
        self.reference = reference
        self.detail = detail
        super().__init__(self.reason)


class BadRequest(ServerError):
    status, code = 400, "bad-request"
    hint = "The request can't be priced. Nothing was settled."


class MalformedPayment(BadRequest):
    code = "payment-malformed"
    hint = "Send exactly one well-formed payment header. Nothing was settled."


class ProofRefused(ServerError):
    """``reason`` is one of ``invalid_siwx_*``."""

    status, code = 401, "proof-refused"
    hint = "The wallet proof is not good. Nothing was charged. Sign a new one."


class PaymentRefused(ServerError):
    status, code = 402, "payment-refused"
    hint = "No money moved. Sign again for one of the offers in this answer."
    network: str = ""
    """Where the payment that was shown would have been settled, once that is known."""


class InsufficientBalance(PaymentRefused):
    """``available`` and ``needed`` in atomic units of the account's asset. Nothing moved, and no proof was spent."""

    code = "insufficient-balance"
    hint = "Top the balance up, or pay for this call directly. Nothing was charged."
    account_network: str = ""

    def __init__(self, available: int, needed: int) -> None:
        super().__init__("insufficient_balance")
        self.available = available
        self.needed = needed


class PaymentUsed(ServerError):
    status, code = 403, "payment-used"
    money: MoneyMoved = "yes"
    hint = "This payment is spent or belongs to another request. Do not show it here again."


class ProofUsed(PaymentUsed):
    code = "proof-used"
    money: MoneyMoved = "no"
    hint = "This wallet proof has been spent. Nothing was charged for this call. Sign a new one."


class LinkRefused(ServerError):
    """``reason`` is ``link_expired`` or ``link_invalid``."""

    status, code = 403, "link-refused"
    hint = "This link is not good, or no longer. Ask for a new one where you had it from. Nothing was charged."


class RequestTimeout(ServerError):
    status, code = 408, "request-timeout"
    hint = "The request body did not arrive in time. Nothing was settled."


class PaymentInProgress(ServerError):
    status, code, money = 409, "payment-in-progress", "unknown"
    hint = "The same payment is being processed. Show the same one again; do not sign anew."
    retry_after = 1


class IdempotencyMismatch(ServerError):
    status, code = 409, "idempotency-mismatch"
    hint = "This Idempotency-Key was used for another request. Nothing was charged for this one."


class BodyTooLarge(ServerError):
    status, code = 413, "body-too-large"
    hint = "The request body is over the limit. Nothing was settled."


class TooManyRequests(ServerError):
    status, code = 429, "too-many-requests"
    hint = "Wait, then try again. Nothing was settled for this request."
    retry_after = 5


class HeaderTooLarge(ServerError):
    status, code = 431, "header-too-large"
    hint = "The payment header is over the limit. Nothing was settled."


class RailUnavailable(ServerError):
    status, code = 503, "payment-unavailable"
    hint = "Nothing was sent. The same payment may be shown again."
    retry_after = 2


class OutcomeUnknown(ServerError):
    status, code, money = 504, "payment-outcome-unknown", "unknown"
    hint = "Money may have moved. Show the same payment again; do not sign anew."
    retry_after = 2


class HoldEnded(X402KitError):
    """``reason`` says how it ended: ``already_captured``, ``already_voided``, ``already_expired``, ``no_such_hold``."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class PayerError(X402KitError):
    """What the paying client raises. ``reference`` names the row of the journal, where there is one."""

    def __init__(self, message: str, *, reference: str = "") -> None:
        self.reference = reference
        super().__init__(f"{message} [payment {reference}]" if reference else message)


class NothingPayable(PayerError):
    """The answer is 402 and none of its offers can be paid by this wallet under this policy."""


class PolicyRefused(PayerError):
    """A rule of the policy, or its callback, said no. Nothing was signed."""


class TooDear(PolicyRefused):
    """The amount is above a cap. Nothing was signed."""


class BalanceTooLow(PolicyRefused):
    """The prepaid balance does not cover the call, and the payer may use nothing else. Nothing was charged."""


class PaymentNotAccepted(PayerError):
    """The server refused a signed payment and says that no money moved."""


class ProofNotAccepted(PayerError):
    """The server refused two wallet proofs in a row. Nothing was charged."""


class PaymentOutcomeUnknown(PayerError):
    """A signed payment was sent and no certain answer came; the same payment is shown on the next try."""

    money: MoneyMoved = "unknown"


class UnreplayableBody(PayerError):
    """The body is a stream that can't be sent again after the 402. Nothing was sent."""


class WalletServiceError(PayerError):
    """A wallet service answered with an error or with something else than it should; ``status`` is its answer's.

    ``code`` and ``reason`` are the service's own words, where it said any.
    """

    def __init__(self, message: str, *, status: int = 0, code: str = "", reason: str = "", reference: str = "") -> None:
        self.status, self.code, self.reason = status, code, reason
        super().__init__(message, reference=reference)
