"""A run's accounts of bytes as text: peak first, then saved and device bytes, the floor, and whether budgets were held."""

from typing import TYPE_CHECKING, Any

from fedact.config.sizes import format_bytes
from fedact.storage.rows import Row

if TYPE_CHECKING:
    import pandas as pd


def byte_rows(clients: "pd.DataFrame", plans: list[Row], scope: str) -> dict[str, str]:
    """Return rows of the table at the end of a run: the largest client's bytes, the floor, and the budget.

    clients: one method's rows. plans: its plans. scope: of the budgets.
    """
    peak, saved, device, floor = (_largest(clients[f"{name}_bytes"]) for name in ("peak", "saved", "device", "floor"))
    return {
        "peak bytes" if scope == "peak" else "peak bytes (not bounded by the budget)": format_bytes(peak),
        "saved bytes": format_bytes(saved),
        "device bytes": format_bytes(device),
        "floor": format_bytes(floor) + (f" (the peak is {peak / floor:.2f} times that)" if peak and floor else ""),
        "budget": span(plans, "budget_bytes", "no bound"),
        "budget held": budget_held(clients, scope),
    }


def times_floor(peak: float | None, floor: float | None) -> str:
    """Return a peak as a multiple of the network's floor.

    >>> times_floor(655_360, 245_760)
    '2.67 x floor'
    """
    return "-" if peak is None or not floor else f"{peak / floor:.2f} x floor"


def fullest_client(clients: list[Row], scope: str = "peak") -> str:
    """Return peak and saved bytes of the client that comes closest to its budget, which bounds those of the scope."""
    measured = [row for row in clients if row.get("saved_bytes") is not None]
    if not measured:
        return "peak -  saved -"
    bounded = f"{scope}_bytes"

    def share(row: Row) -> tuple[bool, float]:
        budget = row["budget_bytes"]
        return bool(budget), (row.get(bounded) or 0) / (budget or 1)

    row = max(measured, key=share)
    budget = f" of {format_bytes(row['budget_bytes'])}" if row["budget_bytes"] else ""
    sizes = {name: format_bytes(row.get(f"{name}_bytes")) for name in ("peak", "saved")}
    return "  ".join(f"{name} {size}{budget if name == scope else ''}" for name, size in sizes.items()) + " bytes"


def budget_held(clients: "pd.DataFrame", scope: str) -> str:
    """Return "yes" or "NO" with the count of clients x rounds within their budget, or "no budget"."""
    bounded = clients.dropna(subset=["budget_bytes"])
    if bounded.empty:
        return "no budget"
    over = bounded[f"{scope}_bytes"].astype(float) > bounded["budget_bytes"].astype(float)
    stopped = bounded["reason"].astype(str).str.contains("over the budget")
    held = len(bounded) - int((over | stopped).sum())
    return f"{'yes' if held == len(bounded) else 'NO'} ({held} of {len(bounded)})"


def span(plans: list[Row], name: str, missing: str = "-") -> str:
    """Return a plan's bytes, or the span over the plans of several budgets."""
    values = sorted({plan[name] for plan in plans if plan.get(name) is not None})
    if not values:
        return missing
    return format_bytes(values[0]) + (f" to {format_bytes(values[-1])}" if len(values) > 1 else "")


def _largest(values: Any) -> float | None:
    return None if values.dropna().empty else float(values.max())
