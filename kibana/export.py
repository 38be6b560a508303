"""Write the dashboards, as they are in Kibana now, into the files that they were imported from.

    python -m kibana.export                         # every .ndjson file of this folder
    python -m kibana.export kibana/smart_city.ndjson

What was edited in the browser becomes a small difference for git: the objects keep their order, the
keys are sorted, also in the JSON that is kept as text, and what changes at each export (dates,
versions of the object) is left out. Objects that a dashboard has begun to use are added at the end.
In a space where Kibana has given the objects other ids, the files keep their own ids.

Environment (or .env beside README.md; a flag wins over both): as for kibana/load.py.

Exit codes: 0 written, 1 Kibana does not answer or lacks an object (nothing is written then), or a
file cannot be written; 2 wrong usage or configuration, 130 Ctrl-C.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kibana.client import (
    Kibana,
    KibanaError,
    SavedObject,
    in_short,
    kibana_at,
    kibana_parser,
    read_objects,
    wait_for,
)
from kibana.command_line import command
from stack.console import say

KEPT = ("attributes", "coreMigrationVersion", "id", "managed", "references", "type")
# An older Kibana refuses what a newer one has written. So each object gets the oldest version that
# knows it, unless it has one of the attributes that are newer.
OLDEST = {"dashboard": "8.9.0", "search": "8.0.0"}
NEWER_ATTRIBUTES = {
    "dashboard": {"sections", "showApplySelections"},
    "search": {
        "sampleSize",
        "headerRowHeight",
        "visContext",
        "density",
        "tabs",
        "controlGroupJson",
    },
}


def compact(value: Any) -> str:
    """Return JSON without blanks, the keys sorted."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def with_compact_json(value: Any) -> Any:
    """Return attributes in which each JSON that is kept as text is compact."""
    if isinstance(value, dict):
        return {key: with_compact_json(inner) for key, inner in value.items()}
    if isinstance(value, str) and value.startswith(("{", "[")):
        with suppress(ValueError):  # this text only looks like JSON
            return compact(json.loads(value))
    return value


def stable(found: SavedObject) -> SavedObject:
    """Return an object without what changes from export to export."""
    kept = {key: found[key] for key in KEPT if key in found}
    kept["attributes"] = with_compact_json(found["attributes"])
    kind, version = found["type"], found.get("typeMigrationVersion", "8.0.0")
    controls = kept["attributes"].get("controlGroupInput", {})
    if controls.get("showApplySelections") is False:  # the default, as before there was a choice
        del controls["showApplySelections"]
    if kind in OLDEST and not NEWER_ATTRIBUTES[kind] & {*kept["attributes"], *controls}:
        version = OLDEST[kind]
    return {**kept, "typeMigrationVersion": version}


def export(kibana: Kibana, file: Path) -> str:
    """Return the new text of a file.

    Raises:
        KibanaError: Kibana does not answer, or lacks an object.
    """
    ids = kibana.ids(read_objects(file))
    question = {
        "objects": [{"type": kind, "id": id_} for (kind, _), id_ in ids.items()],
        "includeReferencesDeep": True,
        "excludeExportDetails": True,
    }
    status, body = kibana.ask("POST", "/api/saved_objects/_export", json=question)
    if status != 200:
        raise KibanaError(f"{file.name}: Kibana does not export it: {in_short(body)}")
    try:
        objects = [stable(json.loads(line)) for line in body.decode().split("\n") if line]
    except (ValueError, LookupError, TypeError) as exc:
        raise KibanaError(f"{file.name}: what Kibana exports is no saved object") from exc
    ours = {(kind, there): here for (kind, here), there in ids.items()}
    for named in [*objects, *(reference for o in objects for reference in o["references"])]:
        named["id"] = ours.get((named["type"], named["id"]), named["id"])
    order = {key: place for place, key in enumerate(ids)}
    objects.sort(key=lambda o: (order.get((o["type"], o["id"]), len(order)), o["type"], o["id"]))
    details = {
        "excludedObjects": [],
        "excludedObjectsCount": 0,
        "exportedCount": len(objects),
        "missingRefCount": 0,
        "missingReferences": [],
    }
    return "".join(compact(line) + "\n" for line in (*objects, details))


@command("export")
def main(argv: Sequence[str] | None = None) -> int:
    """Export; return the exit code (see the module docstring)."""
    options = kibana_parser("kibana.export", __doc__).parse_args(argv)
    kibana = kibana_at(options.url, options.space)
    wait_for(kibana, options.wait)
    texts = {file: export(kibana, file) for file in options.files}
    for file, text in texts.items():
        changed = "changed" if text != file.read_text(encoding="utf-8") else "as before"
        file.write_text(text, encoding="utf-8")
        say(f"{file.name}: {changed}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
