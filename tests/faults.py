"""The catalogue of attacks and faults, and the tests that play them. ``python -m tests.faults`` writes docs/faults.md.

A test names its case, as in ``test_C03_...``; the table is put together from those names, so it can't promise a test
that does not exist (tests/test_faults_doc.py holds the page to it).
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "faults.md"

CASES: dict[str, dict[str, str]] = {
    "A. The challenge and the route": {
        "A01": "price lowered in the echo",
        "A02": "recipient, asset or network swapped in the echo",
        "A03": "a challenge of another origin",
        "A04": "a payment for one route shown at another",
        "A05": "access kept by what the client echoed",
        "A06": "body swapped after the quote",
        "A07": "query swapped after the quote",
        "A08": "method swapped, body left out",
        "A09": "other spellings of a path",
        "A10": "a price on a route that does not exist",
        "A11": "two payments in one request",
        "A12": "ambiguous JSON and base64",
        "A13": "things that look like numbers",
        "A14": "header injection through descriptions",
        "A15": "expired and skewed challenges",
    },
    "B. Payment on EVM": {
        "B01": "signed under another domain",
        "B02": "too little, too much",
        "B03": "the edges of uint256",
        "B04": "one signature in several spellings",
        "B05": "nonce used on the chain before",
        "B06": "somebody else submits the authorization",
        "B07": "cancelled or drained between check and settlement",
        "B08": "a contract wallet changes its mind",
        "B09": "ERC-6492 factory calls",
        "B10": "precompiles as signers",
        "B11": "a token that lies",
        "B12": "the transaction succeeds and no transfer reaches us",
        "B13": "the same authorization on another chain",
        "B14": "valid too briefly, valid too long",
        "B15": "many settlements from one wallet",
        "B16": "no gas, or gas too dear",
        "B17": "more captured than authorised",
    },
    "C. Replays and races": {
        "C01": "twenty identical requests at once",
        "C02": "the same over several processes",
        "C03": "shown again after a lost answer",
        "C04": "shown again after a crash between settling and serving",
        "C05": "shown again with another body",
        "C06": "idempotency keys",
        "C07": "shown again after everything was forgotten",
        "C08": "shown again after a restart",
        "C09": "through the doors of v1 and v2",
        "C10": "two calls on one balance",
        "C11": "a flood of unpaid challenges",
    },
    "D. Payment on Solana": {
        "D01": "an instruction more, to spend the fee payer",
        "D02": "tricks with the compute budget",
        "D03": "an account created at our cost",
        "D04": "lookup tables, and versions that we don't know",
        "D05": "mints with a fee, a hook, a program of their own",
        "D06": "our own signer as the authority",
        "D07": "one message in several signatures",
        "D08": "sent many times, and each is told of success",
        "D09": "the blockhash expires",
        "D10": "confirmed, then forked out",
    },
    "E. The ledger": {
        "E01": "the same deposit twice",
        "E02": "a crash between a deposit's key and its balance",
        "E03": "the commit succeeded, its answer was lost",
        "E04": "more captured than reserved",
        "E05": "captured after it was voided, and other second ends",
        "E06": "the reserve expires while the stream runs",
        "E07": "void and capture at the same moment",
        "E08": "rounding, a million times",
        "E09": "overflow and sign",
        "E10": "a refund paid twice",
        "E11": "a payer nobody has seen",
        "E12": "balances rebuilt from the log",
    },
    "F. Wallet proofs": {
        "F01": "a nonce shown again",
        "F02": "signed for another site",
        "F03": "another chain, another address, another kind of key",
        "F04": "base58 in lower case",
        "F05": "statement, resources or URI that are not ours",
        "F06": "clocks that differ",
        "F07": "a contract wallet changes its owner",
        "F08": "spending by way of a browser or a shared cache",
    },
    "G. L402 and the Payment scheme": {
        "G01": "caveats widened, moved, taken away",
        "G02": "a preimage of another invoice",
        "G03": "the preimage is known, and the invoice is not settled",
        "G04": "other doors and spellings",
        "G05": "paid late, or never shown",
        "G06": "a part of a payment",
        "G07": "a token of another service",
        "G08": "fields that join alike under the HMAC",
        "G09": "secrets that rotate",
        "G10": "parameters twice, in other letters",
        "G11": "vouchers of a session shown again",
        "G12": "tricks with a session's refund invoice",
    },
    "H. Streams, and callers who leave": {
        "H01": "a stream must stream",
        "H02": "the caller leaves before the first byte",
        "H03": "the caller leaves amid the stream",
        "H04": "a usage of zero",
        "H05": "usage missing, cut, compressed, faked, twice",
        "H06": "a stream that stalls",
        "H07": "the handler raises after its headers",
        "H08": "the handler raises before them",
        "H09": "which statuses are charged for",
        "H10": "hidden reasoning",
    },
    "I. Settlement": {
        "I01": "chain or facilitator down at the check",
        "I02": "time-out after the broadcast",
        "I03": "garbage after the facilitator settled",
        "I04": "a facilitator says success, and the chain does not",
        "I05": "success false, success missing",
        "I06": "nonce used after our own lost answer",
        "I07": "dropped from the mempool",
        "I08": "a reorganisation after serving",
        "I09": "a replica that lags",
        "I10": "two nodes that disagree",
        "I11": "a hook or the log fails after settling",
        "I12": "settling takes longer than the client waits",
        "I13": "junk to deny settlement",
    },
    "J. Process and database": {
        "J01": "killed at every step",
        "J02": "power cut after the commit",
        "J03": "disk full or read-only",
        "J04": "database locked",
        "J05": "a failover loses commits",
        "J06": "network file systems, fork after open",
        "J07": "the clock jumps",
        "J08": "a migration interrupted",
        "J09": "SIGTERM with streams open",
    },
    "K. Exhaustion and the network's edge": {
        "K01": "large headers, many offers, large bodies",
        "K02": "a body that comes byte by byte",
        "K03": "a flood of signatures",
        "K04": "growth of the claims",
        "K05": "requests to where the operator did not say",
        "K06": "shared caches",
        "K07": "forged Host and X-Forwarded headers",
        "K08": "CORS",
    },
    "M. The paying client": {
        "M01": "the price jumps, or a second 402",
        "M02": "an SDK's own retries",
        "M03": "the process dies after signing",
        "M04": "threads and processes race for the budget",
        "M05": "an unknown asset that looks like a known one",
        "M06": "redirects to a 402 elsewhere",
        "M07": "402 without end",
        "M08": "text that gives orders",
        "M09": "plain http and private addresses",
        "M10": "a receipt forged, missing, or another's",
        "M11": "streaming request bodies",
        "M12": "cancelled during the paid leg",
        "M13": "a hostile server, ten thousand times",
    },
}

WAITS: dict[str, str] = {}
"""Cases that can't be played before another part is there, and which one."""

HEAD = """# Attacks and faults

What must never happen, and the tests that try to make it happen. A test's name holds the case, so `pytest -k C03` runs
it. This page is written by `python -m tests.faults` from the tests that exist; a test holds it to them.

Cases about API keys come with that part. Of the Payment scheme's sessions, which are not offered, the tests show that
none can be had.
"""


def played_by_case() -> dict[str, list[str]]:
    """Case → the tests that name it, as ``file::test``."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for name in re.findall(r"def (test_\w+)", path.read_text()):
            for case in re.findall(r"_([A-M][0-9]{2})(?=_)", name):
                found[case].append(f"{path.name}::{name}")
    return found


def page() -> str:
    found = played_by_case()
    parts = [HEAD]
    for group, cases in CASES.items():
        parts.append(f"\n## {group}\n\n| case | what | played by |\n| --- | --- | --- |\n")
        for case, title in cases.items():
            played = "<br>".join(f"`{name}`" for name in found.get(case, ())) or WAITS.get(case, "**not played**")
            parts.append(f"| {case} | {title} | {played} |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
