"""What a run's score is called where people read it; in files the field is ``accuracy`` whatever the task."""

from collections.abc import Mapping
from typing import Any

SCORE_NAMES = {"classification": "accuracy", "segmentation": "mean IoU"}


def task_of(config: Mapping[str, Any]) -> str:
    """Return the task of a run's config; a run from before there were several classifies."""
    return str(config.get("task") or "classification")


def score_name(config: Mapping[str, Any]) -> str:
    """Return what the score of a run with this config is called."""
    return SCORE_NAMES.get(task_of(config), "score")
