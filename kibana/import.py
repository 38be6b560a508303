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
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from kibana.server import (  # noqa: E402  # works from any folder
    FILES,
    Kibana,
    KibanaError,
    in_short,
    kibana_from,
    parser,
    read_objects,
    wait_for,
)


def import_file(kibana: Kibana, file: Path) -> dict[tuple[str, str], str]:
    """Import one file, over what is there; return (type, id) -> the id it has in Kibana.

    In another space than the first, Kibana gives the objects new ids.

    Raises:
        KibanaError: Kibana refuses the file or a part of it, or does not answer.
    """
    objects = read_objects(file)
    status, body = kibana.ask(
        "POST",
        "/api/saved_objects/_import?overwrite=true",
        fields={"file": (file.name, file.read_bytes(), "application/ndjson")},
    )
    if status != 200:
        raise KibanaError(f"{file.name}: Kibana refuses it (HTTP {status}): {in_short(body)}")
    answer: dict[str, Any] = json.loads(body)
    if not answer.get("success"):
        errors = [
            f"{error['type']} {error['id']}: {error['error']['type']} "
            f"{error['error'].get('message', '')}".strip()
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


def verify(kibana: Kibana, file: Path, ids: dict[tuple[str, str], str]) -> None:
    """Read every object of a file back.

    Raises:
        KibanaError: one is missing, or has another title.
    """
    objects = read_objects(file)
    wanted = [{"type": o["type"], "id": ids.get((o["type"], o["id"]), o["id"])} for o in objects]
    status, body = kibana.ask("POST", "/api/saved_objects/_bulk_get", json=wanted)
    if status != 200:
        raise KibanaError(f"{file.name}: cannot be read back (HTTP {status}): {in_short(body)}")
    for given, found in zip(objects, json.loads(body)["saved_objects"], strict=True):
        if "error" in found or found["attributes"]["title"] != given["attributes"]["title"]:
            raise KibanaError(f"{file.name}: {given['type']} {given['id']} is not in Kibana")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Import and verify; return the exit code (see the module docstring)."""
    options_of = parser(__doc__ or "")
    options_of.add_argument("files", nargs="*", type=Path, default=FILES, metavar="FILE")
    options = options_of.parse_args(argv)
    kibana = kibana_from(options)
    try:
        version = wait_for(kibana, options.wait)
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
