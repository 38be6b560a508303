"""Import the dashboards into Kibana, and verify that they are there.

    python -m kibana.load                         # every .ndjson file of this folder
    python -m kibana.load kibana/smart_city.ndjson --space ville

Kibana may answer "success" to less than it was given: the answer's count is compared with the
file's, and every object is read back.

Environment (or .env beside README.md; a flag wins over both):
    KIBANA_URL        default http://localhost:5601
    KIBANA_SPACE      default: the default space
    KIBANA_API_KEY, or KIBANA_USER and KIBANA_PASSWORD    where security is on
    KIBANA_CA_FILE    certificate of the authority that vouches for it (PEM), with https

Exit codes: 0 all is there, 1 it is not, or Kibana does not answer; 2 wrong usage or configuration,
130 Ctrl-C.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from kibana.client import Key, Kibana, KibanaError, kibana_at, kibana_parser, read_objects, wait_for
from kibana.command_line import command
from stack.console import say


def import_file(kibana: Kibana, file: Path) -> dict[Key, str]:
    """Import one file over what is there; return (type, id) -> the id it has in the space.

    Kibana gives a new id to an object that another space already holds.

    Raises:
        KibanaError: Kibana refuses the file or a part of it, or does not answer.
    """
    objects = read_objects(file)
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
        for found in answer.get("successResults", [])
    }


def verify(kibana: Kibana, file: Path, ids: dict[Key, str]) -> None:
    """Read every object of a file back.

    Raises:
        KibanaError: one is missing, or has another title.
    """
    wanted = {(o["type"], ids.get((o["type"], o["id"]), o["id"])): o for o in read_objects(file)}
    answer = kibana.ask_json(
        f"{file.name}: cannot be read back",
        "POST",
        "/api/saved_objects/_bulk_get",
        json=[{"type": type_, "id": id_} for type_, id_ in wanted],
    )
    saved = {(o["type"], o["id"]): o for o in answer.get("saved_objects", []) if "error" not in o}
    for key, given in wanted.items():
        title = given["attributes"].get("title")
        if key not in saved or saved[key]["attributes"].get("title") != title:
            raise KibanaError(f"{file.name}: {given['type']} {given['id']} is not in Kibana")


@command("load")
def main(argv: Sequence[str] | None = None) -> int:
    """Import and verify; return the exit code (see the module docstring)."""
    options = kibana_parser("kibana.load", __doc__).parse_args(argv)
    kibana = kibana_at(options.url, options.space)
    version = wait_for(kibana, options.wait)
    for file in options.files:
        ids = import_file(kibana, file)
        verify(kibana, file, ids)
        say(f"{file.name}: {len(ids)} objects are in Kibana {version}")
        for type_, id_ in ids:
            if type_ == "dashboard":
                say(f"  {kibana.root}/app/dashboards#/view/{ids[type_, id_]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
