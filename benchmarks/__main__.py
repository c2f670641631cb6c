"""``make bench``: all parts in one run, as one table. Two to three minutes on two quiet cores."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
from collections.abc import Awaitable, Callable
from typing import Final

from . import balance, calls, cpu, durable, imports, l402, ledger, over_http, postgres, svm
from .processes import Probe
from .results import Row, table

Part = Callable[[Probe | None], Awaitable[list[Row]]]


async def _imports(peer: Probe | None) -> list[Row]:
    return await asyncio.to_thread(imports.measure, with_peer=peer is not None)


async def _durable(_: Probe | None) -> list[Row]:
    return await durable.measure()


async def _balance(_: Probe | None) -> list[Row]:
    return await balance.measure()


async def _ledger(_: Probe | None) -> list[Row]:
    return await ledger.measure()


async def _postgres(_: Probe | None) -> list[Row]:
    return await postgres.measure()


async def _http(peer: Probe | None) -> list[Row]:
    return await over_http.measure(with_peer=peer is not None)


PARTS: Final[dict[str, Part]] = {
    "cpu": cpu.measure,
    "solana": svm.measure,
    "l402": l402.measure,
    "durable": _durable,
    "balance": _balance,
    "ledger": _ledger,
    "postgres": _postgres,
    "calls": calls.measure,
    "imports": _imports,
    "http": _http,
}


_QUIET: Final = 1.0
"""The load average up to which the machine counts as our own."""


async def _run(names: list[str], *, with_peer: bool) -> list[Row]:
    peer = await Probe.open() if with_peer else None
    if with_peer and peer is None:
        print("the peer is not here (.venv-peers); `make setup` brings it", file=sys.stderr)
    rows: list[Row] = []
    for name in names:
        print(f"measuring: {name} …", file=sys.stderr)
        rows += await PARTS[name](peer)
    if peer is not None:
        await peer.close()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What x402kit costs, beside its peer.")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may come several times")
    parser.add_argument("--no-peer", action="store_true", help="without the x402 package")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 when a floor is missed")
    arguments = parser.parse_args()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    busy = load > _QUIET
    rows = asyncio.run(_run(arguments.only or list(PARTS), with_peer=not arguments.no_peer))
    print(f"\nPython {platform.python_version()}, {os.cpu_count()} cores; medians of rounds in turns.")
    print("× is the median of the rounds' own ratios: of CPU times, or of calls a second where it stands beside such.")
    if busy:
        print(
            f"The machine had other work at the start (load {load:.1f}); what waits for disk or thread suffers by it."
        )
    print("\n" + table(rows))
    missed = [row.what for row in rows if not row.kept]
    print(f"\n{'all floors kept' if not missed else 'missed: ' + '; '.join(missed)}")
    return 1 if missed and arguments.strict else 0


if __name__ == "__main__":
    sys.exit(main())
