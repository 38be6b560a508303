#!/usr/bin/env python3
"""Write the dashboards, as they are in Kibana now, back into the files they were imported from.

    python kibana/export.py                         # every .ndjson file of this folder
    python kibana/export.py kibana/smart_city.ndjson

What was edited in the browser becomes a small difference for git: the objects keep their order, the
keys are sorted, also in the JSON that is kept as text, and what changes at each export (dates,
versions of the object) is left out. What a dashboard has come to use besides is added at the end.
In a space where Kibana has given the objects other ids, they come back with those of the files.

Environment (or .env beside README.md; a flag wins over both): as for import.py.

Exit codes: 0 written, 1 Kibana does not answer or lacks an object (nothing is written then);
2 wrong usage.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from kibana import server  # noqa: E402  # works from any folder
from kibana.server import Kibana, KibanaError, SavedObject  # noqa: E402

KEPT = ("attributes", "coreMigrationVersion", "id", "managed", "references", "type")
# The oldest versions that hold what these objects hold: what a newer Kibana writes, an older one
# refuses, though nothing changed in between but these attributes.
OLDEST = {"dashboard": "8.9.0", "search": "8.0.0"}
NEWER_ATTRIBUTES = {
    "dashboard": {"sections", "controlGroupInput"},
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


def stable(found: SavedObject) -> SavedObject:
    """Return an object without what changes from export to export."""
    kept = {key: found[key] for key in KEPT if key in found}
    for holder, key in list(server.inner_json(kept["attributes"])):
        try:
            holder[key] = compact(json.loads(holder[key]))
        except ValueError:  # a text that only looks like JSON
            continue
    kind, version = found["type"], found.get("typeMigrationVersion", "8.0.0")
    if kind in OLDEST and not NEWER_ATTRIBUTES[kind] & set(kept["attributes"]):
        version = OLDEST[kind]
    return {**kept, "typeMigrationVersion": version}


def export(kibana: Kibana, file: Path) -> str:
    """Return the new text of a file.

    Raises:
        KibanaError: Kibana does not answer, or lacks an object.
    """
    before = server.read_objects(file)
    ids = kibana.ids(before)
    question = {
        "objects": [{"type": kind, "id": id_} for (kind, _), id_ in ids.items()],
        "includeReferencesDeep": True, "excludeExportDetails": True,
    }  # fmt: skip
    status, body = kibana.ask("POST", "/api/saved_objects/_export", json=question)
    if status != 200:
        raise KibanaError(f"{file.name}: Kibana does not export it: {server.in_short(body)}")
    objects = [stable(json.loads(line)) for line in body.decode().splitlines() if line]
    ours = {(kind, there): here for (kind, here), there in ids.items()}
    for named in [*objects, *(reference for o in objects for reference in o["references"])]:
        named["id"] = ours.get((named["type"], named["id"]), named["id"])
    order = {key: place for place, key in enumerate(ids)}
    objects.sort(key=lambda o: (order.get((o["type"], o["id"]), len(order)), o["type"], o["id"]))
    details = {
        "excludedObjects": [], "excludedObjectsCount": 0, "exportedCount": len(objects),
        "missingRefCount": 0, "missingReferences": [],
    }  # fmt: skip
    return "".join(compact(line) + "\n" for line in (*objects, details))


def main(argv: Sequence[str] | None = None) -> int:
    """Export; return the exit code (see the module docstring)."""
    options = server.parser(__doc__ or "").parse_args(argv)
    kibana = server.kibana_from(options)
    try:
        server.wait_for(kibana, options.wait)
        texts = {file: export(kibana, file) for file in options.files}
    except KibanaError as exc:
        sys.stderr.write(f"export: {exc}\n")
        return 1
    for file, text in texts.items():
        changed = "changed" if text != file.read_text(encoding="utf-8") else "as before"
        file.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{file.name}: {changed}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
