"""``x402kit pay``: curl that pays, within a limit."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import httpx

from ..client import Payer, PayerError, PaymentInfo, payment_of
from ..client.receipts import is_unavailable
from ..model import Json
from ..networks.lightning_port import is_lightning
from .answer import TOLD_MAX, output
from .keys import add_keys, add_lightning, dollars, journal_path, limits_of, read_wallets
from .outcome import AGAIN, OPEN, failed, in_options, open_call, open_reference, say, state_of
from .output import error, plain, tell
from .report import amount_text, network_text
from .request import add_request, body_of, headers_of, method_of
from .status import ERROR, OK, REFUSED, UNKNOWN

__all__ = ["add", "run"]

_DESCRIPTION = """Request URL, and pay what it asks for, up to a limit. The answer's body goes to standard output, the
receipt to standard error: in words on a terminal, else as one line of JSON.

The wallet's private key is read from X402KIT_EVM_KEY, or from a file; for Solana from X402KIT_SVM_KEY, or a keypair's
file. A Lightning node that pays is named by X402KIT_LIGHTNING_URL, _KEY, _CERT and _BTC_USD, or by options. What was
signed is written to a journal before it is sent: when an answer is lost, the same command shows the same payment again
and signs no other.

Exit status:
  0  answered, and paid where payment was asked for
  1  an error, or a status of 400 or more
  2  the command or its set-up is wrong
  3  refused: by the limits, or no offer can be paid, or the server does not accept the payment
  4  too dear: more than --max-amount or --max-per-day; nothing was signed
  5  the payment was shown, and it is open what became of it: run the same command again
Who stops reading the answer changes none of these, and gets the receipt; where it can't be written, 0 becomes 1.
"""


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "pay",
        help="request a URL and pay for it",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL")
    add_request(parser)
    most = "for one call, also from the balance; 0.05 if not given"
    parser.add_argument("--max-amount", type=dollars, default="$0.05", metavar="USD", help=most)
    parser.add_argument(
        "--balance",
        nargs="?",
        const="first",
        default="off",
        choices=("first", "only"),
        help="pay from the prepaid balance there; 'only': and never in another way",
    )
    add_keys(parser, "base, solana, lightning")
    add_lightning(parser)
    parser.add_argument("-L", "--location", action="store_true", help="follow redirects; only the first host is paid")
    parser.add_argument("-m", "--max-time", type=float, default=60.0, metavar="SECONDS", help="of silence; 60")
    parser.add_argument("-i", "--include", action="store_true", help="the answer's status and headers, too")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the body goes there")
    parser.add_argument("--json", action="store_true", help="the receipt as JSON, on a terminal too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Request, pay, and hand the answer out."""
    hosts = None if arguments.balance == "off" else _host(arguments.url)
    payer = Payer(
        **read_wallets(arguments),
        limits=limits_of(arguments, per_call=arguments.max_amount, hosts=hosts),
        journal=journal_path(arguments.journal),
        allow_insecure=arguments.allow_insecure,
        balance=arguments.balance,
        ask_price=True,  # what the last process learned of the seller is forgotten, and --max-amount holds all the same
    )
    words = sys.stderr.isatty() and not arguments.json
    try:
        return _exchange(payer, arguments, words)
    except (PayerError, httpx.HTTPError, httpx.InvalidURL, OSError) as e:
        return failed(payer, e, words)
    except KeyboardInterrupt as e:
        if not open_reference(payer, e):
            raise
        return failed(payer, e, words)


def _host(url: str) -> list[str] | None:
    """A host that is named here may be shown the wallet's proof, though its 402 does not ask for one."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:  # the request says so
        return None
    return [parts.raw_host.decode("ascii").lower()]


def _exchange(payer: Payer, arguments: argparse.Namespace, words: bool) -> int:
    headers, body = headers_of(arguments), body_of(arguments)
    transport, redirects = payer.transport(), arguments.location
    with (
        output(arguments.output) as out,
        httpx.Client(transport=transport, timeout=arguments.max_time, follow_redirects=redirects) as client,
        client.stream(method_of(arguments), arguments.url, headers=headers, content=body) as answer,
    ):
        out.take(answer, head=arguments.include)
    status = _status(payer, answer, out.told, words)
    if out.fault is None or isinstance(out.fault, BrokenPipeError):  # who stops reading has what was wanted
        return status
    info, why = payment_of(answer), out.fault.strerror or out.fault
    say(words, "not_written", f"the answer could not be written: {why}", info.reference if info else "")
    return status or ERROR


def _status(payer: Payer, answer: httpx.Response, told: bytes, words: bool) -> int:
    """What the journal knows of the payment decides; the answer's status does where there was none."""
    status, info = answer.status_code, payment_of(answer)
    if info is None:
        if status == 402:
            say(words, "not_payable", "402, and no offer in it that this payer can pay; x402kit inspect says more", "")
            return REFUSED
        if status >= 400 and (reference := open_call(payer, answer)):
            say(words, "outcome_unknown", f"status {status}, and the call is open; {AGAIN}", reference)
            return UNKNOWN
        return OK if status < 400 else ERROR
    state = state_of(payer, info.reference) if info.source != "token" else "accepted"
    if state in OPEN:
        say(words, "outcome_unknown", f"status {status}, and {_known(info, told)}; {AGAIN}", info.reference)
        return UNKNOWN
    if state == "used":
        say(words, "not_accepted", f"status {status}: the payment was not accepted", info.reference)
        return REFUSED
    if state == "refused":
        say(words, "error", f"status {status}; the payment was not taken", info.reference)
        return ERROR
    _receipt(info, status, words)
    return OK if status < 400 else ERROR


def _known(info: PaymentInfo, told: bytes) -> str:
    """What is known of a payment that stays open; ``told`` is the answer's body, as much as a problem document has."""
    if info.receipt is not None and info.receipt.success:
        return f"the money moved ({info.transaction})"
    if info.unsent and len(told) <= TOLD_MAX and is_unavailable(told):
        return "the seller says that nothing was sent"
    return "what became of the payment is not known"


def _receipt(info: PaymentInfo, status: int, words: bool) -> None:
    """What was paid, on standard error."""
    price = amount_text(info.amount, info.network, info.asset)
    if not words:
        tell(json.dumps(_receipt_json(info, status, price)))
        return
    again = ", shown again" if info.replayed else ""
    if info.source == "token":
        tell(_by_token(info, status))
        return
    if info.source == "balance":
        tell(f"paid {_cost(info, price)} from the balance on {network_text(info.network)}{again}")
    else:
        to = f" to {info.pay_to}" if info.pay_to else ""
        tell(f"paid {price} on {network_text(info.network)}{to}{again}")
    lightning = is_lightning(info.network)
    if not lightning:
        tell(f"     from {info.payer}")
    if info.transaction:
        tell(f"     {'payment hash' if lightning else 'transaction'} {plain(info.transaction)}")
    if info.balance is not None:
        left = amount_text(info.balance, info.network, info.asset)
        tell(f"     {left} are on the balance")
    if not info.verified:
        error(f"the receipt is doubtful: {in_options(info.problem)}")


def _by_token(info: PaymentInfo, status: int) -> str:
    reference = plain(info.reference)
    if status >= 400 and info.charged is None:
        return f"status {status}: a token of the payment {reference} was shown, and nothing is said of a charge"
    if info.charged is None or info.replayed:
        shown = ", and the stored answer shown again" if info.replayed else ""
        return f"paid before: a token of the payment {reference} was taken{shown}"
    cost = amount_text(info.charged, info.network, info.asset)
    return f"paid {cost} from what was left of the payment {reference}, by its token"


def _cost(info: PaymentInfo, price: str) -> str:
    return price if info.charged is not None else f"at most {price}"


def _receipt_json(info: PaymentInfo, status: int, price: str) -> Json:
    paid: Json = {"amount": str(info.amount), "price": price, "network": info.network, "asset": info.asset}
    parties: Json = {"payer": info.payer, "pay_to": info.pay_to, "transaction": info.transaction}
    seen: Json = {"replayed": info.replayed, "verified": info.verified, "problem": in_options(info.problem)}
    parts: Json = {name: _digits(getattr(info, name)) for name in ("reserved", "charged", "returned", "balance")}
    return {"status": status, **paid, **parties, **seen, "source": info.source, **parts, "reference": info.reference}


def _digits(amount: int | None) -> str | None:
    return None if amount is None else str(amount)
