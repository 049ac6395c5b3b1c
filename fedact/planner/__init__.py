"""(model, example, budget) -> plan: the least gradient error that a budget allows, promised only after it was measured."""

from fedact.planner.make_plan import expected_error, make_plan

__all__ = ["expected_error", "make_plan"]
