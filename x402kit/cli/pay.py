"""``x402kit pay``: curl that pays, within a limit."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any, Final

import httpx

from ..client import (
    Limits,
    NothingPayable,
    Payer,
    PayerError,
    PaymentInfo,
    PaymentNotAccepted,
    PolicyRefused,
    TooDear,
    payment_of,
)
from ..errors import ConfigError
from ..model import Json
from .output import error, plain, write_json
from .report import amount_text, network_text
from .request import add_request, body_of, headers_of, method_of
from .status import ERROR, OK, REFUSED, TOO_DEAR, UNKNOWN

__all__ = ["add", "run"]

_DESCRIPTION = """Request URL, and pay what it asks for, up to a limit. The answer's body goes to standard output, the
receipt to standard error: in words on a terminal, else as one line of JSON.

The wallet's private key is read from X402KIT_EVM_KEY, or from a file. What was signed is written to a journal before it
is sent: when an answer is lost, the same command shows the same payment again and signs no other.

Exit status:
  0  answered, and paid where payment was asked for
  1  an error, or a status of 400 or more
  2  the command or its set-up is wrong
  3  refused: by the limits, or no offer can be paid, or the server does not accept the payment
  4  too dear: more than --max-amount or --max-per-day; nothing was signed
  5  the payment was shown, and it is open what became of it: run the same command again
"""
_AMOUNT: Final = re.compile(r"\$?\d+\.\d+\Z|\$\d+\Z", re.ASCII)
_OPEN: Final = ("signed", "unknown")
_AGAIN: Final = "the same command shows the same payment again"
# The library's errors name its own arguments; who sits at a shell has the options.
_OPTIONS: Final = (
    ("allow_insecure=True", "--allow-insecure"),
    ("Limits.per_call", "--max-amount"),
    ("Limits.per_day", "--max-per-day"),
)


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
    parser.add_argument("--max-amount", type=_dollars, default="$0.05", metavar="USD", help="0.05 if not given")
    parser.add_argument("--max-per-day", type=_dollars, metavar="USD", help="with what the journal holds of today")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="the private key, 64 hex digits")
    parser.add_argument("--journal", type=Path, metavar="FILE", help="~/.local/state/x402kit/journal.db if not given")
    parser.add_argument("-L", "--location", action="store_true", help="follow redirects; only the first host is paid")
    parser.add_argument("-m", "--max-time", type=float, default=60.0, metavar="SECONDS", help="of silence; 60")
    parser.add_argument("-i", "--include", action="store_true", help="the answer's status and headers, too")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the body goes there")
    parser.add_argument("--json", action="store_true", help="the receipt as JSON, on a terminal too")
    parser.set_defaults(run=run)


def _dollars(text: str) -> str:
    """A bare number could be dollars or atomic units (L06): a dollar sign or a decimal point is asked for."""
    if not _AMOUNT.match(text):
        whole = f"{text}.00 or '${text}'" if text.isascii() and text.isdigit() else "0.05 or '$0.05'"
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of dollars: write {whole} (quoted from the shell)")
    return text if text.startswith("$") else f"${text}"


def run(arguments: argparse.Namespace) -> int:
    """Request, pay, and hand the answer out."""
    payer = Payer(
        _key(arguments.key_file),
        limits=Limits(per_call=arguments.max_amount, per_day=arguments.max_per_day),
        journal=arguments.journal or _journal(),
        allow_insecure=arguments.allow_insecure,
    )
    words = sys.stderr.isatty() and not arguments.json
    try:
        return _exchange(payer, arguments, words)
    except (PayerError, httpx.HTTPError, httpx.InvalidURL, OSError) as e:
        return _failed(payer, e, words)
    except KeyboardInterrupt as e:
        if not _open_payment(payer, e):
            raise
        return _failed(payer, e, words)


def _exchange(payer: Payer, arguments: argparse.Namespace, words: bool) -> int:
    headers, body = headers_of(arguments), body_of(arguments)
    transport, redirects = payer.transport(), arguments.location
    with (
        httpx.Client(transport=transport, timeout=arguments.max_time, follow_redirects=redirects) as client,
        client.stream(method_of(arguments), arguments.url, headers=headers, content=body) as answer,
        _output(arguments.output) as out,
    ):
        if arguments.include:
            out.write(_head(answer))
        last = b""
        for chunk in answer.iter_bytes():
            out.write(chunk)
            out.flush()
            last = chunk
        if last and not last.endswith(b"\n") and out.isatty():
            out.write(b"\n")
            out.flush()
    return _status(payer, answer.status_code, payment_of(answer), words)


def _status(payer: Payer, status: int, info: PaymentInfo | None, words: bool) -> int:
    """What the journal knows of the payment decides; the answer's status does where there was none."""
    if info is None:
        if status == 402:
            _say(words, "not_payable", "402, and no offer in it that this payer can pay; x402kit inspect says more", "")
            return REFUSED
        return OK if status < 400 else ERROR
    state = _state(payer, info.reference)
    if state in _OPEN:
        settled = info.receipt is not None and info.receipt.success
        known = f"the money moved ({info.transaction})" if settled else "what became of the payment is not known"
        _say(words, "outcome_unknown", f"status {status}, and {known}; {_AGAIN}", info.reference)
        return UNKNOWN
    if state == "used":
        _say(words, "not_accepted", f"status {status}: the payment was not accepted", info.reference)
        return REFUSED
    if state == "refused":
        _say(words, "error", f"status {status}; the payment was not taken", info.reference)
        return ERROR
    _receipt(info, status, words)
    return OK if status < 400 else ERROR


def _failed(payer: Payer, fault: BaseException, words: bool) -> int:
    """Say what went wrong, and what it means for the money."""
    reference = _open_payment(payer, fault)
    if reference:
        why = str(fault) or type(fault).__name__
        _say(words, "outcome_unknown", f"{why}; {_AGAIN}", reference)
        return UNKNOWN
    kinds: tuple[tuple[type[BaseException], str, int], ...] = (
        (TooDear, "too_dear", TOO_DEAR),
        (PolicyRefused, "refused", REFUSED),
        (NothingPayable, "not_payable", REFUSED),
        (PaymentNotAccepted, "not_accepted", REFUSED),
    )
    code, status = next(((code, status) for kind, code, status in kinds if isinstance(fault, kind)), ("error", ERROR))
    _say(words, code, _told(fault), getattr(fault, "reference", ""))
    return status


def _told(fault: BaseException) -> str:
    text = str(fault) or type(fault).__name__
    if isinstance(fault, httpx.RequestError):
        text = f"{fault.request.url}: {text}"
    for argument, option in _OPTIONS:
        text = text.replace(argument, option)
    return text


def _open_payment(payer: Payer, fault: BaseException) -> str:
    """The payment that was in use when this went wrong, where its outcome is open: the client notes it on the error."""
    told = " ".join([getattr(fault, "reference", ""), *getattr(fault, "__notes__", ())])
    found = (p.reference for p in payer.payments(only_open=True) if p.state in _OPEN and p.reference in told)
    return next(found, "")


def _state(payer: Payer, reference: str) -> str:
    return next((payment.state for payment in payer.payments() if payment.reference == reference), "")


def _say(words: bool, code: str, message: str, reference: str) -> None:
    if words:
        error(message)
    else:
        write_json({"error": code, "message": plain(message), "reference": reference}, sys.stderr)


def _receipt(info: PaymentInfo, status: int, words: bool) -> None:
    """What was paid, on standard error."""
    price = amount_text(info.amount, info.network, info.asset)
    if not words:
        write_json(_receipt_json(info, status, price), sys.stderr)
        return
    again = ", shown again" if info.replayed else ""
    print(f"paid {price} on {network_text(info.network)} to {info.pay_to}{again}", file=sys.stderr)
    print(f"     from {info.payer}", file=sys.stderr)
    if info.transaction:
        print(f"     transaction {plain(info.transaction)}", file=sys.stderr)
    if not info.verified:
        error(f"the receipt is doubtful: {info.problem}")


def _receipt_json(info: PaymentInfo, status: int, price: str) -> Json:
    paid: Json = {"amount": str(info.amount), "price": price, "network": info.network, "asset": info.asset}
    parties: Json = {"payer": info.payer, "pay_to": info.pay_to, "transaction": info.transaction}
    seen: Json = {"replayed": info.replayed, "verified": info.verified, "problem": info.problem}
    return {"status": status, **paid, **parties, **seen, "reference": info.reference}


def _key(path: Path | None) -> str:
    if path is None:
        key = os.environ.get("X402KIT_EVM_KEY", "").strip()
        if not key:
            raise ConfigError("no wallet: set X402KIT_EVM_KEY, or give --key-file")
        return key
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as e:
        raise ConfigError(f"the key file {path} can't be read: {type(e).__name__}") from None


def _journal() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "x402kit" / "journal.db"


@contextlib.contextmanager
def _output(path: Path | None) -> Generator[IO[bytes]]:
    if path is None:
        yield sys.stdout.buffer
    else:
        with path.open("wb") as out:
            yield out


def _head(answer: httpx.Response) -> bytes:
    lines = [f"{answer.http_version} {answer.status_code} {answer.reason_phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.multi_items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
