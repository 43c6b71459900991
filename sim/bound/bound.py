"""The bound of one batch: rows of resources, the least of which nothing exceeds."""

from __future__ import annotations

from dataclasses import dataclass

from sim.bound.resources import Resource

TIE = 1e-6  # rows that a linear programme makes equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Rows of one batch: `tokens_per_s` is the smallest of them; no schedule of the plan exceeds it."""

    tokens_per_device: int
    rows: tuple[Resource, ...]

    @property
    def binding(self) -> Resource:
        """The row that allows least; of several, as at the optimum of a programme, that of the largest weight."""
        least = self.tokens_per_s * (1 + TIE)
        return max((row for row in self.rows if row.tokens_per_s <= least), key=lambda row: row.weight or 0.0)

    @property
    def any_plan(self) -> Resource | None:
        """The row that allows least, of those that hold for any placement of the experts; None where none does."""
        rows = (row for row in self.rows if row.holds == "any plan")
        return min(rows, key=lambda row: row.tokens_per_s, default=None)

    @property
    def tokens_per_s(self) -> float:
        """Throughput that nothing exceeds."""
        return min(row.tokens_per_s for row in self.rows)

    def price(self, row: Resource) -> float:
        """Shadow price: tokens/s of one more unit of the row's capacity."""
        weight = float(row is self.binding) if row.weight is None else row.weight
        return weight * self.tokens_per_s / row.capacity

    def used_frac(self, row: Resource) -> float:
        """Share of a resource that is busy at the bound."""
        return self.tokens_per_s / row.tokens_per_s
