"""Lightning invoices in PostgreSQL: what was issued, and for what."""

from __future__ import annotations

from typing import Any, Final

from ..model import Invoice
from .postgres_base import Base
from .postgres_moves import values_of
from .rules import checked, notable

__all__ = ["Invoices"]

_NAMES: Final = ", ".join(Invoice._fields)
_SELECT: Final = f"SELECT {_NAMES} FROM x402kit.invoices"
_INSERT: Final = (
    f"INSERT INTO x402kit.invoices ({_NAMES}) SELECT {values_of(Invoice._fields)} ON CONFLICT DO NOTHING RETURNING 1"
)


class Invoices(Base):
    """The port's ``Invoices``."""

    async def add_invoice(self, invoice: Invoice) -> None:
        checked(invoice.amount)
        await self._write(_INSERT, invoice._asdict(), of=invoice.payment_hash, order=invoice.payment_hash)

    async def get_invoice(self, payment_hash: str) -> Invoice | None:
        rows = await self._read(f"{_SELECT} WHERE payment_hash = %(hash)s", hash=payment_hash)
        return Invoice._make(rows[0]) if rows else None

    async def due_invoices(self, now: int, limit: int = 100) -> list[Invoice]:
        sql = f"{_SELECT} WHERE state = 'open' AND next_check <= %(now)s ORDER BY next_check LIMIT %(limit)s"
        return [Invoice._make(row) for row in await self._read(sql, now=now, limit=limit)]

    async def note_invoice(self, payment_hash: str, **columns: Any) -> None:
        sets = ", ".join(f"{name} = %({name})s" for name in notable(columns))
        sql = f"UPDATE x402kit.invoices SET {sets} WHERE payment_hash = %(_hash)s RETURNING 1"
        await self._write(sql, {**columns, "_hash": payment_hash}, of=payment_hash, order=payment_hash)

    async def count_open_invoices(self, now: int) -> int:
        sql = "SELECT count(*) FROM x402kit.invoices WHERE state = 'open' AND expires_at > %(now)s"
        rows = await self._read(sql, now=now)
        return int(rows[0][0])
