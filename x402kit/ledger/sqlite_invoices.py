"""Lightning invoices in SQLite: what was issued, and for what."""

from __future__ import annotations

from typing import Any, Final

from ..model import Invoice
from .rules import checked, notable
from .sqlite_file import SQLiteFile

__all__ = ["SQLiteInvoices"]

_NAMES: Final = ", ".join(Invoice._fields)
_SELECT: Final = f"SELECT {_NAMES} FROM invoices"
_INSERT: Final = (
    f"INSERT INTO invoices ({_NAMES}) VALUES ({', '.join('?' * len(Invoice._fields))})"
    " ON CONFLICT (payment_hash) DO NOTHING"
)


class SQLiteInvoices(SQLiteFile):
    """``Invoices``."""

    async def add_invoice(self, invoice: Invoice) -> None:
        checked(invoice.amount)
        await self._write(lambda c: c.execute(_INSERT, invoice).rowcount)

    async def get_invoice(self, payment_hash: str) -> Invoice | None:
        rows = await self._rows(Invoice._make, f"{_SELECT} WHERE payment_hash = ?", payment_hash)
        return rows[0] if rows else None

    async def due_invoices(self, now: int, limit: int = 100) -> list[Invoice]:
        sql = f"{_SELECT} WHERE state = 'open' AND next_check <= ? ORDER BY next_check LIMIT ?"
        return await self._rows(Invoice._make, sql, now, limit)

    async def note_invoice(self, payment_hash: str, **columns: Any) -> None:
        sets = ", ".join(f"{name} = ?" for name in notable(columns))
        values = (*columns.values(), payment_hash)
        await self._write(lambda c: c.execute(f"UPDATE invoices SET {sets} WHERE payment_hash = ?", values).rowcount)

    async def count_open_invoices(self, now: int) -> int:
        sql = "SELECT count(*) FROM invoices WHERE state = 'open' AND expires_at > ?"
        return (await self._rows(_first, sql, now))[0]


def _first(row: tuple[int]) -> int:
    return row[0]
