"""A real browser, for the tests of generated pages."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def chromium(page: Path, *options: str) -> str:
    """Open a page in a real browser without a window; return what it writes."""
    if not (program := os.environ.get("CHROMIUM") or shutil.which("chromium")):
        pytest.skip("needs Chromium: apt-get install chromium, or its path in CHROMIUM")
    profile = f"--user-data-dir={page.parent / 'profile'}"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", profile)
    command = [program, *flags, *options, page.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return ended.stdout
