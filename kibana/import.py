#!/usr/bin/env python3
"""Import the dashboards into Kibana, and verify that they are there.

    python kibana/import.py                         # every .ndjson file of this folder
    python kibana/import.py kibana/smart_city.ndjson --space ville

Kibana may answer "success" to less than it was given: the answer's count is compared with the
file's, and every object is read back.

Environment (or .env beside README.md; a flag wins over both):
    KIBANA_URL        default http://localhost:5601
    KIBANA_SPACE      default: the default space
    KIBANA_API_KEY, or KIBANA_USER and KIBANA_PASSWORD    where security is on
    KIBANA_CA_FILE    certificate of the authority that vouches for it (PEM), with https

Exit codes: 0 all is there, 1 it is not, or Kibana does not answer; 2 wrong usage.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from kibana import server  # noqa: E402  # works from any folder
from kibana.server import Key, Kibana, KibanaError  # noqa: E402


def import_file(kibana: Kibana, file: Path) -> dict[Key, str]:
    """Import one file, over what is there; return (type, id) -> the id it has in the space.

    Kibana gives new ids to what another space already holds.

    Raises:
        KibanaError: Kibana refuses the file or a part of it, or does not answer.
    """
    objects = server.read_objects(file)
    answer = kibana.ask_json(
        f"{file.name}: Kibana refuses it",
        "POST",
        "/api/saved_objects/_import?overwrite=true",
        fields={"file": (file.name, file.read_bytes(), "application/ndjson")},
    )
    if not answer.get("success"):
        errors = [
            f"{error['type']} {error['id']}: {json.dumps(error['error'], ensure_ascii=False)}"
            for error in answer.get("errors", [])
        ]
        raise KibanaError(f"{file.name}: not imported: {'; '.join(errors)[:500]}")
    if answer.get("successCount") != len(objects):
        raise KibanaError(
            f"{file.name}: Kibana took {answer.get('successCount')} of {len(objects)} objects"
        )
    return {
        (found["type"], found["id"]): found.get("destinationId", found["id"])
        for found in answer["successResults"]
    }


def verify(kibana: Kibana, file: Path, ids: dict[Key, str]) -> None:
    """Read every object of a file back.

    Raises:
        KibanaError: one is missing, or has another title.
    """
    objects = server.read_objects(file)
    wanted = [{"type": o["type"], "id": ids.get((o["type"], o["id"]), o["id"])} for o in objects]
    answer = kibana.ask_json(
        f"{file.name}: cannot be read back", "POST", "/api/saved_objects/_bulk_get", json=wanted
    )
    for given, found in zip(objects, answer["saved_objects"], strict=True):
        if "error" in found or found["attributes"]["title"] != given["attributes"]["title"]:
            raise KibanaError(f"{file.name}: {given['type']} {given['id']} is not in Kibana")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Import and verify; return the exit code (see the module docstring)."""
    options = server.parser(__doc__ or "").parse_args(argv)
    kibana = server.kibana_from(options)
    try:
        version = server.wait_for(kibana, options.wait)
        for file in options.files:
            ids = import_file(kibana, file)
            verify(kibana, file, ids)
            say(f"{file.name}: {len(ids)} objects are in Kibana {version}")
            for type_, id_ in ids:
                if type_ == "dashboard":
                    say(f"  {kibana.root}/app/dashboards#/view/{ids[type_, id_]}")
    except KibanaError as exc:
        sys.stderr.write(f"import: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
