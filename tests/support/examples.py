"""How many examples a property test makes: SOFTTOK_EXAMPLES=10 makes ten times as many of each as CI does."""

from __future__ import annotations

import os

from hypothesis import settings

VARIABLE = "SOFTTOK_EXAMPLES"
USUAL = 100
"""Examples of a test that asks for no number, without the variable."""


def multiplier() -> float:
    """Returns the number in SOFTTOK_EXAMPLES, or 1 where it is not set. Raises ValueError if it is not above 0."""
    given = os.environ.get(VARIABLE) or "1"
    try:
        number = float(given)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ValueError(f"{VARIABLE}={given}: give a number above 0, such as 10")
    return number


def examples(count: int) -> settings:
    """Returns the decorator of a property test with `count` examples in CI, and the multiple of that by command."""
    return settings(max_examples=max(1, round(count * multiplier())))


def load_profile() -> None:
    """Sets the defaults of all property tests.

    No example has a deadline, as the machine may be busy. Without the variable runs of the same tests make the same
    examples (Hypothesis also tries constants of the modules that are loaded); with it each run makes others.
    """
    more = bool(os.environ.get(VARIABLE))
    settings.register_profile(
        "softtok", max_examples=max(1, round(USUAL * multiplier())), deadline=None, derandomize=not more
    )
    settings.load_profile("softtok")
