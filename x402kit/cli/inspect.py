"""``x402kit inspect``: a header or a priced URL, decoded and explained, with what is wrong with it."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import httpx

from ..model import BYTES_NESTED_MAX, Json
from ..protocols import x402
from .explain import explain_challenge, explain_receipt, explain_sign_in
from .explain_auth import asks_for_payment, explain_auth
from .explain_payment import explain_payment
from .explain_wallet import explain_wallet
from .output import bold, dim, error, green, plain, red, wants_json, write_json
from .reading import read
from .report import Finding, Report
from .request import add_request, body_of, headers_of, method_of
from .status import ERROR, OK, USAGE

__all__ = ["add", "run"]

_INPUT_MAX: Final = 1024 * 1024
_SECONDS: Final = 20.0
_AUTHENTICATE: Final = re.compile(r"[<>]?\s*www-authenticate\s*:\s*", re.IGNORECASE)
_DESCRIPTION = """Explain an x402, L402 or Payment header, or what a priced URL asks for, and say what is wrong with it.

X is one of
  - the value of PAYMENT-REQUIRED, PAYMENT-SIGNATURE (X-PAYMENT) or PAYMENT-RESPONSE, or such a header's whole line,
  - the JSON inside one of them,
  - a WWW-Authenticate line of L402 or Payment, or its value,
  - a URL, priced or a wallet service's: it is asked once, without a payment, and nothing is ever paid,
  - "-": one of the first three, from standard input.

Exit status: 0 nothing is wrong, 1 something is, 2 wrong usage. In a pipe or with --json:
  {"kind", "ok", "problems": [{"code", "detail"}], "notes": [...], "decoded"}, and "challenges" of WWW-Authenticate
"""


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "inspect",
        help="explain a header, or what a URL asks for",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", metavar="X", help="a header's value, a URL, or -")
    parser.add_argument("--json", action="store_true", help="JSON, on a terminal too")
    add_request(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Explain; status 1 when there are problems."""
    what: str = arguments.what
    scheme = what.partition("://")[0].lower()
    if scheme == "http" and not arguments.allow_insecure:
        error("plain http is only asked with --allow-insecure")
        return USAGE
    if scheme in ("http", "https"):
        report = look_at_url(arguments)
    else:
        report = look_at_value(sys.stdin.read(_INPUT_MAX) if what == "-" else what)
    if wants_json(arguments.json):
        write_json(report.json())
    else:
        _show(report)
    return OK if report.ok else ERROR


def look_at_value(text: str) -> Report:
    """A header's value, line, or JSON."""
    report = Report()
    line = _AUTHENTICATE.sub("", text.strip(), count=1)
    if asks_for_payment([line]):
        _challenged([line], report)
        return report
    obj = read(text, report)
    if obj is not None:
        _explain(obj, report)
    return report


def _explain(obj: Json, report: Report) -> None:
    if report.kind == "payment-required":
        explain_challenge(obj, report)
    elif report.kind == "payment":
        explain_payment(obj, report, int(time.time()))
    elif report.kind == "payment-response":
        explain_receipt(obj, report)


def look_at_url(arguments: argparse.Namespace) -> Report:
    """One request without a payment, and the challenge that it is answered with."""
    report = Report()
    body = body_of(arguments)
    headers = headers_of(arguments)
    try:
        with (
            httpx.Client(timeout=_SECONDS) as client,
            client.stream(method_of(arguments), arguments.what, headers=headers, content=body) as answer,
        ):
            _answered(answer, report)
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        report.problem("unreachable", f"{type(e).__name__}: {e}")
    return report


def _answered(answer: httpx.Response, report: Report) -> None:
    report.extra = {"url": str(answer.request.url), "status": answer.status_code}
    if answer.status_code == 200 and explain_wallet(_body(answer), str(answer.request.url), report):
        return
    if answer.status_code != 402:
        report.problem("not_402", f"it answered {answer.status_code}, not 402: it asks for no payment")
        return
    header = answer.headers.get(x402.PAYMENT_REQUIRED)
    lines = answer.headers.get_list("WWW-Authenticate")
    body = _body(answer)
    found = _x402_offers(header, body, report, alone=not asks_for_payment(lines))
    if found:
        explain_sign_in(report.decoded, answer.request.url.netloc.decode("ascii"), report)
    if asks_for_payment(lines):
        _challenged(lines, report)
    elif not found:
        return
    if "no-store" not in answer.headers.get("cache-control", "").lower():
        report.problem("cacheable", "no Cache-Control: no-store: a cache may give this challenge to others")


def _challenged(lines: Sequence[str], report: Report) -> None:
    if report.kind == "unknown":
        report.kind = "www-authenticate"
        report.say("Challenges in WWW-Authenticate, of which one is to be paid")
    explain_auth(lines, report, int(time.time()))


def _x402_offers(header: str | None, body: str, report: Report, *, alone: bool) -> bool:
    """Whether there is a challenge of x402; without one something is wrong, if nothing else asks for money."""
    if header is None and not alone and not _is_challenge(body):
        return False
    if header is None and not body.lstrip().startswith("{"):
        report.problem("no_challenge", "402 without a challenge of x402, L402 or Payment, and without a JSON body")
        return False
    obj = read(body if header is None else header, report)
    if obj is None:
        return False
    if report.kind != "payment-required":
        report.problem("no_challenge", "402, and what came with it is no challenge of x402, L402 or Payment")
        return False
    _explain(obj, report)
    if header is not None:
        _compare(obj, body, report)
    return True


def _is_challenge(body: str) -> bool:
    inner = Report()
    return body.lstrip().startswith("{") and read(body, inner) is not None and inner.kind == "payment-required"


def _body(answer: httpx.Response) -> str:
    data = b""
    for chunk in answer.iter_bytes():
        data += chunk
        if len(data) > BYTES_NESTED_MAX:
            return ""
    return data.decode("utf-8", "replace")


def _compare(header: Json, body: str, report: Report) -> None:
    """Header (v2) and body (v1) should ask for the same."""
    inner = Report()
    obj = read(body, inner) if body.lstrip().startswith("{") else None
    if obj is None or inner.kind != "payment-required":
        return
    try:
        first, second = (x402.parse_payment_required(each) for each in (header, obj))
    except ValueError as e:
        report.problem("body_malformed", f"the body's challenge: {e}")
        return
    asked, also = ({(o.network, o.asset.lower(), o.pay_to, o.amount) for o in p.accepts} for p in (first, second))
    if not also <= asked:
        report.problem("body_differs", "the body asks for something else than the header")


def _show(report: Report) -> None:
    if "url" in report.extra:
        print(dim(f"{plain(report.extra['url'])} answered {report.extra['status']}"))
    for number, line in enumerate(report.lines):
        print(plain(line) if number else bold(plain(line)))
    for finding in report.problems:
        print(red("  wrong    ") + _finding(finding))
    for finding in report.notes:
        print(dim("  note     ") + _finding(finding))
    if report.ok:
        print(green("  Nothing is wrong with it."))


def _finding(finding: Finding) -> str:
    return f"{plain(finding.detail)} {dim(f'[{finding.code}]')}"
