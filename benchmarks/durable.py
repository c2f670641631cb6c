"""Paid calls a second with the durable claim: 64 at once, SQLite with ``synchronous=FULL`` on a real file."""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from .asgi import drive, offer_of
from .results import Row
from .stubs import Payers, paid_app

__all__ = ["disk", "measure"]

AT_ONCE: Final = 64
CALLS: Final = 4000
ROUNDS: Final = 5


def disk() -> str:
    """Where files are on a disk even where /tmp is memory."""
    return "/var/tmp" if Path("/var/tmp").is_dir() else tempfile.gettempdir()


def fsync_micros(folder: str, count: int = 200) -> float:
    """The median of one small append with fdatasync: what a commit can't do without."""
    times: list[float] = []
    with (Path(folder) / "fsync").open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(bytes(4096))
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


async def _round(folder: str, name: str) -> tuple[float, float]:
    """Calls a second by the clock, and CPU seconds of each."""
    paywall, app = paid_app(f"{folder}/{name}.db")
    offer, echo = await offer_of(app, "/weather")
    payments = Payers().pay_often(offer, echo, CALLS)
    clock, cpu = time.perf_counter(), time.process_time()
    seen = await drive(app, "/weather", payments, AT_ONCE)
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    assert seen == {200}, seen
    await paywall.stop()
    return CALLS / clock, cpu / CALLS


async def measure(rounds: int = ROUNDS) -> list[Row]:
    """The rows of this part."""
    gc.collect()
    gc.freeze()  # as docs/performance.md advises servers: nothing looks through what the parts before have left behind
    with tempfile.TemporaryDirectory(prefix="x402kit-bench-", dir=disk()) as folder:
        fsync = fsync_micros(folder)
        made = [await _round(folder, str(number)) for number in range(rounds)]
    rate = statistics.median(rate for rate, _ in made)
    cpu = statistics.median(cpu for _, cpu in made) * 1e6
    shown = f"{rate:,.0f}/s ({cpu:.0f} µs of CPU each)".replace(",", " ")
    return [
        Row("fdatasync of this disk", 0, f"{fsync:.0f} µs"),
        Row(f"paid calls with SQLite, {AT_ONCE} at once", rate, shown, 3000, ">=", "/s"),
    ]
