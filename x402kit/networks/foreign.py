"""Calls into objects that the operator gave us (a signer, a provider), whose faults can be of any class.

What such an object raises becomes ``ForeignFault``, which holds nothing of it: its text may name keys or URLs (I11).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

__all__ = ["ForeignFault", "foreign"]

T = TypeVar("T")


class ForeignFault(Exception):
    """The object raised, or did not answer in time."""


async def foreign(call: Coroutine[object, object, T], seconds: float) -> T:
    """The call's result; ``ForeignFault`` for anything that it raises, and after ``seconds``."""
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
    if not task.done() or task.cancelled():
        raise ForeignFault("no answer in time")
    error = task.exception()
    if error is not None:
        raise ForeignFault(type(error).__name__)
    return task.result()
