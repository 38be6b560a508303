"""Take pictures of Discover and of the dashboards in a running Kibana, with a real browser.

    python -m screenshots.capture --until 2026-06-02T00:00:00Z
    python -m screenshots.capture --until 2026-06-02T00:00:00Z --hours 1 kibana/data_quality.ndjson

Every picture has the same window and the same period (--hours up to --until), so that it can be
taken again. Each page is waited for until all its panels say that they have drawn; notices are
closed. Needs Playwright and its Chromium: pip install playwright, then playwright install chromium.

Environment (or .env beside README.md; a flag wins over both): as for kibana/load.py, and CHROMIUM,
a Chromium to use instead of Playwright's own.

Exit codes: 0 taken, 1 Kibana does not answer, a page does not draw or a picture cannot be written;
2 wrong usage or configuration, 130 Ctrl-C.
"""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kafka_to_elasticsearch import number, one_line
from kibana.client import FILES, Key, kibana_at, kibana_parser, read_objects, wait_for
from kibana.command_line import command
from sensor_generator import parse_time
from stack.console import CommandError, say

FOLDER = Path(__file__).resolve().parent
HEIGHT = 1080
APPS = {"search": ("discover", "discover-"), "dashboard": ("dashboards", "")}
DRAWN_MS = 90_000
# A panel that has drawn has data-render-complete="true"; so has Discover's table.
ALL_DRAWN = """
  (count) => {
    const items = [...document.querySelectorAll('[data-shared-item]')];
    return items.length >= count
      && items.every((item) => item.getAttribute('data-render-complete') === 'true')
      && !document.querySelector('[data-test-subj="globalLoadingIndicator"]');
  }
"""
# Closes the notices, and asks whether there was none and each panel, which glides to its place, has
# not moved since the last question.
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
    """Return the pages to take: file name, path in Kibana, number of panels that must draw.

    They are the searches and dashboards that have an id in Kibana, with their numbers among all.
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
    page.goto("about:blank")  # another text after the # would not load the page again
    page.goto(url)
    page.wait_for_function(ALL_DRAWN, arg=panels, timeout=DRAWN_MS)
    window = page.viewport_size
    page.set_viewport_size({**window, "height": page.evaluate(CONTENT_HEIGHT)})  # all of it at once
    page.wait_for_function(ALL_DRAWN, arg=panels, timeout=DRAWN_MS)
    page.keyboard.press("Escape")  # closes what Kibana has opened to say that a search is slow
    page.wait_for_function(AT_REST, arg=NOTICES, polling=500, timeout=DRAWN_MS)
    page.screenshot(path=file)
    page.set_viewport_size(window)


@command("capture")
def main(argv: Sequence[str] | None = None) -> int:
    """Take all pictures; return the exit code (see the module docstring)."""
    parser = kibana_parser("screenshots.capture", __doc__)
    now = datetime.now(UTC)
    text = "end of the period shown, ISO 8601 (default: now)"
    parser.add_argument("--until", type=parse_time, default=now, metavar="TIME", help=text)
    text = "length of the period shown (default: 24)"
    parser.add_argument("--hours", type=number(0.01, 1e5), default=24.0, metavar="N", help=text)
    text = "of the window, in pixels (default: 1920)"
    width = number(320, 10_000, int)
    parser.add_argument("--width", type=width, default=1920, metavar="N", help=text)
    text = "where the pictures are written (default: screenshots)"
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="FOLDER", help=text)
    options = parser.parse_args(argv)
    if options.until.year < 1970:
        parser.error("--until: the year is before 1970")
    kibana = kibana_at(options.url, options.space)
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as exc:
        why = "pip install playwright, then playwright install chromium"
        raise CommandError(why) from exc
    version = wait_for(kibana, options.wait)
    ids = kibana.ids([o for file in options.files for o in read_objects(file)])
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM") or None)
            window = {"width": options.width, "height": HEIGHT}
            page = browser.new_page(viewport=window, locale="fr-FR", timezone_id="UTC")
            page.goto(f"{kibana.root}/app/home")
            log_in(page)
            for name, path, panels in pages_of(ids, options.until, options.hours):
                take(page, kibana.root + path, panels, options.output / f"{name}.png")
                say(f"{name}.png (Kibana {version})")
            browser.close()
    except Error as exc:
        raise CommandError(one_line(exc)) from exc
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
