#!/usr/bin/env python3
"""Take pictures of Discover and of the dashboards in a running Kibana, by a real browser.

    python screenshots/capture.py --until 2026-06-02T00:00:00Z
    python screenshots/capture.py --until 2026-06-02T00:00:00Z --hours 1 kibana/data_quality.ndjson

Every picture has the same window and the same period (--hours up to --until), so that it can be
taken again. Each page is waited for until all its panels say that they have drawn; notices are
closed. Needs Playwright and its Chromium: pip install playwright, then playwright install chromium.

Environment (or .env beside README.md; a flag wins over both):
    KIBANA_URL        default http://localhost:5601
    KIBANA_SPACE      default: the default space
    KIBANA_USER, KIBANA_PASSWORD    where security is on
    CHROMIUM          a Chromium to use instead of Playwright's own

Exit codes: 0 taken, 1 Kibana does not answer or a page does not draw; 2 wrong usage.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from kibana.server import (  # noqa: E402  # works from any folder
    FILES,
    Key,
    KibanaError,
    kibana_from,
    parser,
    read_objects,
    wait_for,
)

FOLDER = Path(__file__).resolve().parent
HEIGHT = 1080
APPS = {"search": ("discover", "discover-"), "dashboard": ("dashboards", "")}
DRAWN_MS = 90_000
# A panel, once drawn, has data-render-complete="true"; Discover's table says so too.
ALL_DRAWN = """
  (count) => {
    const items = [...document.querySelectorAll('[data-shared-item]')];
    return items.length >= count
      && items.every((item) => item.getAttribute('data-render-complete') === 'true')
      && !document.querySelector('[data-test-subj="globalLoadingIndicator"]');
  }
"""
# Closes what notices there are, and asks whether there was none and each panel, which glides to its
# place, is where it was at the last question.
AT_REST = """
  (notices) => {
    const buttons = document.querySelectorAll(notices);
    buttons.forEach((button) => button.click());
    const items = [...document.querySelectorAll('[data-shared-item]')];
    const now = JSON.stringify(items.map((item) => item.getBoundingClientRect()));
    const before = window.smartCityPlaces;
    window.smartCityPlaces = now;
    return buttons.length === 0 && now === before;
  }
"""
CONTENT_HEIGHT = "document.documentElement.scrollHeight"
NOTICES = ", ".join(
    f'[data-test-subj="{name}"]'
    for name in ("toastCloseButton", "euiToastCloseButton", "euiTourCloseButton")
)
NOTICES += ', [data-test-subj="dscDocumentExplorerTourCallout"] .euiButtonIcon'


def pages_of(ids: Mapping[Key, str], until: datetime, hours: float) -> list[tuple[str, str, int]]:
    """Return what is taken: file name, path in Kibana, number of panels that must draw.

    Of all searches and dashboards, those that have an id in Kibana; each keeps its number.
    """
    start = until - timedelta(hours=hours)
    period = f"time:(from:'{stamp(start)}',to:'{stamp(until)}'),refreshInterval:(pause:!t,value:0)"
    objects = [o for file in FILES for o in read_objects(file) if o["type"] in APPS]
    found = []
    for place, item in enumerate(objects, 1):
        if id_ := ids.get((item["type"], item["id"])):
            app, prefix = APPS[item["type"]]
            panels = json.loads(item["attributes"].get("panelsJSON", '["the table"]'))
            path = f"/app/{app}#/view/{id_}?_g=({period})"
            found.append((f"{place:02d}-{prefix}{item['id']}", path, len(panels)))
    return found


def stamp(when: datetime) -> str:
    """Return a time as Kibana writes it."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def log_in(page: Any) -> None:
    """Fill in the login form, if Kibana has sent us there."""
    if "/login" in page.url:
        page.fill('[data-test-subj="loginUsername"]', os.environ.get("KIBANA_USER", ""))
        page.fill('[data-test-subj="loginPassword"]', os.environ.get("KIBANA_PASSWORD", ""))
        page.click('[data-test-subj="loginSubmit"]')
        page.wait_for_url(lambda url: "/login" not in url, timeout=DRAWN_MS)


def take(page: Any, url: str, panels: int, file: Path) -> None:
    """Open one page, wait until all its panels have drawn, and save the picture of it whole."""
    page.goto("about:blank")  # a change behind the # alone would not load the page anew
    page.goto(url)
    page.wait_for_function(ALL_DRAWN, arg=panels, timeout=DRAWN_MS)
    window = page.viewport_size
    page.set_viewport_size({**window, "height": page.evaluate(CONTENT_HEIGHT)})  # all of it at once
    page.wait_for_function(ALL_DRAWN, arg=panels, timeout=DRAWN_MS)
    page.wait_for_function(AT_REST, arg=NOTICES, polling=500, timeout=DRAWN_MS)
    page.screenshot(path=file)
    page.set_viewport_size(window)


def main(argv: Sequence[str] | None = None) -> int:
    """Take all pictures; return the exit code (see the module docstring)."""
    options_of = parser(__doc__ or "")
    options_of.add_argument("--until", type=datetime.fromisoformat, default=datetime.now(UTC),
        metavar="TIME", help="end of the period shown, ISO 8601 (default: now)")  # fmt: skip
    options_of.add_argument("--hours", type=float, default=24.0, help="its length (default: 24)")
    options_of.add_argument("--width", type=int, default=1920, help="of the window (default: 1920)")
    options_of.add_argument("--output", type=Path, default=FOLDER, metavar="FOLDER")
    options = options_of.parse_args(argv)
    kibana = kibana_from(options)
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        sys.stderr.write("capture: pip install playwright, then playwright install chromium\n")
        return 1
    try:
        version = wait_for(kibana, options.wait)
        ids = kibana.ids([o for file in options.files for o in read_objects(file)])
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM"))
            window = {"width": options.width, "height": HEIGHT}
            page = browser.new_page(viewport=window, locale="fr-FR", timezone_id="UTC")
            page.goto(f"{kibana.root}/app/home")
            log_in(page)
            for name, path, panels in pages_of(ids, options.until, options.hours):
                take(page, kibana.root + path, panels, options.output / f"{name}.png")
                sys.stdout.write(f"{name}.png (Kibana {version})\n")
            browser.close()
    except (KibanaError, Error) as exc:
        sys.stderr.write(f"capture: {' '.join(str(exc).split())[:300]}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
