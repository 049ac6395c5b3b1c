"""(model, example, budget) -> Plan: the least gradient error that the budget allows, measured before it is promised."""

from fedact.planner.make_plan import expected_error, make_plan

__all__ = ["expected_error", "make_plan"]
