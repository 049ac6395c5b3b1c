"""A warning of fedact is one line on stderr, whatever comes upon it how often."""

import logging
import warnings

from fedact.cli import warning_lines
from fedact.cli.warning_lines import warnings_once


def warn(text: str, filename: str) -> None:
    warnings.warn_explicit(text, UserWarning, filename, 1)


def test_the_same_warning_from_many_places_is_said_once(caplog):
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with caplog.at_level(logging.WARNING), warnings_once():
            for place in ("nn/install.py", "planner/profile.py"):
                warn("not compressed:\n3 (Strange)", f"{warning_lines.PACKAGE}/{place}")
            warn("another", f"{warning_lines.PACKAGE}/nn/install.py")
            warn("somebody else's", "/elsewhere.py")
            warn("somebody else's", "/elsewhere.py")
    assert caplog.messages == ["not compressed: 3 (Strange)", "another"]
    assert [str(warning.message) for warning in others] == ["somebody else's"] * 2
