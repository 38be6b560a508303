"""Waiting in tests for what must come, never for a fixed time."""

import time
from collections.abc import Callable
from typing import Any

import pytest


def wait_until(
    condition: Callable[[], Any],
    what: str | Callable[[], str],
    timeout_s: float = 240,
    pause_s: float = 0.05,
) -> Any:
    """Return the condition's first true value; it is asked for every pause_s seconds.

    Raises:
        pytest.fail.Exception: it was not true within timeout_s; the text says what was waited for.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            said = what if isinstance(what, str) else what()
            pytest.fail(f"not within {timeout_s:.0f} s: {said}")
        time.sleep(pause_s)
    return value
