"""Import and export against a stand-in that answers as a real Kibana does."""

import email
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kibana.client import FILES, kibana_url, read_objects
from screenshots import capture
from tests.conftest import PROJECT

FILE = PROJECT / "kibana/smart_city.ndjson"


class StubKibana(ThreadingHTTPServer):
    """A Kibana that keeps what it is given, and can be told to fail in the ways that it knows.

    Attributes:
        starting: how many more times it says that it is not ready.
        fault: "" or what goes wrong with an import: missing, short, newer, unavailable, forgotten,
            or proxy, list: another program answers; stranger: it does so from the first request on.
        secret: the value of the header authorization that it asks for, if any.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StubHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.spaces: dict[str, dict[tuple[str, str], Any]] = {}
        self.starting = 0
        self.fault = ""
        self.secret = ""


class StubHandler(BaseHTTPRequestHandler):
    server: StubKibana

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: Any) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status: int, message: str) -> None:
        self.answer(status, {"statusCode": status, "error": "x", "message": message})

    def do_GET(self) -> None:
        if "/api/saved_objects/_find?" in self.path:
            self.find()
            return
        assert self.path.endswith("/api/status")
        if self.server.starting > 0:
            self.server.starting -= 1
            self.answer(503, b"Kibana server is not ready yet")
        elif self.server.fault == "stranger":
            self.answer(404, b"<html>Not Found</html>")
        elif self.server.secret and self.headers.get("authorization") != self.server.secret:
            self.answer(200, {"status": {"overall": {"level": "available"}}})
        else:
            level = {"overall": {"level": "available"}}
            self.answer(200, {"version": {"number": "8.19.0"}, "status": level})

    def find(self) -> None:
        space, _, query = self.path.partition("/api/saved_objects/_find?")
        asked = urllib.parse.parse_qs(query)
        objects = self.server.spaces.get(space.removeprefix("/s/"), {})
        found = [o for (type_, _), o in objects.items() if type_ in asked["type"]]
        assert len(found) <= int(asked["per_page"][0])
        self.answer(200, {"saved_objects": found})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        space, _, path = self.path.rpartition("/api/saved_objects/")
        objects = self.server.spaces.setdefault(space.removeprefix("/s/"), {})
        if self.server.secret and self.headers.get("authorization") != self.server.secret:
            self.refuse(401, "Unauthorized")
        elif "kbn-xsrf" not in self.headers:
            self.refuse(400, "Request must contain a kbn-xsrf header.")
        elif path == "_import?overwrite=true":
            self.import_(body, space.removeprefix("/s/"))
        elif path == "_bulk_get":
            found = [
                objects.get((o["type"], o["id"]), {**o, "error": {"statusCode": 404}})
                for o in json.loads(body)
            ]
            self.answer(200, {"saved_objects": found})
        elif path == "_export":
            self.export(json.loads(body), objects)
        else:
            self.refuse(404, "Not Found")

    def import_(self, body: bytes, space: str) -> None:
        kind = self.headers["Content-Type"]
        if not kind.startswith("multipart/form-data"):
            self.refuse(415, "Unsupported Media Type")
            return
        message = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
        (part,) = (part for part in message.walk() if not part.is_multipart())
        if part.get_param("name", header="content-disposition") != "file":
            self.refuse(400, "[request body.file]: expected value of type [Stream]")
            return
        if not str(part.get_filename()).endswith(".ndjson"):
            self.refuse(400, "Invalid file extension")
            return
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        found = [json.loads(line) for line in content.splitlines()]
        found = [o for o in found if "exportedCount" not in o]
        name = {"type": "lens", "id": "x"}
        if self.server.fault == "newer":
            self.refuse(422, 'Document "x" belongs to a more recent version of Kibana [10.3.0]')
        elif self.server.fault == "missing":
            errors = [{**name, "error": {"type": "missing_references"}}]
            self.answer(200, {"success": False, "successCount": 0, "errors": errors})
        elif self.server.fault == "short":
            self.answer(200, {"success": True, "successCount": len(found) - 1})
        elif self.server.fault == "unavailable":
            self.answer(503, b"Kibana server is not ready yet")
        elif self.server.fault == "list":
            self.answer(200, [])
        elif self.server.fault == "proxy":
            self.answer(200, b"<html>Welcome</html>")
        else:
            results = [self.keep(o, space) for o in found if self.server.fault != "forgotten"]
            self.answer(
                200, {"success": True, "successCount": len(found), "successResults": results}
            )

    def keep(self, found: Any, space: str) -> dict[str, str]:
        """Keep an object; one that another space has becomes a copy with an id of its own."""
        key = (found["type"], found["id"])
        result = {"type": found["type"], "id": found["id"]}
        if any(key in objects for name, objects in self.server.spaces.items() if name != space):
            names = {"id": f"copy-{found['id']}", "originId": found["id"]}
            result["destinationId"] = names["id"]
            references = [{**r, "id": f"copy-{r['id']}"} for r in found["references"]]
            found = {**found, **names, "references": references}
        self.server.spaces[space][found["type"], found["id"]] = found
        return result

    def export(self, asked: dict[str, Any], objects: dict[tuple[str, str], Any]) -> None:
        wanted = [(o["type"], o["id"]) for o in asked["objects"]]
        if any(key not in objects for key in wanted):
            self.refuse(400, "Error fetching objects to export")
            return
        exported = []
        for key in reversed(wanted):  # another order, other blanks, and what changes every time
            o = json.loads(json.dumps(objects[key]))
            if "panelsJSON" in o["attributes"]:
                o["attributes"]["panelsJSON"] = json.dumps(
                    json.loads(o["attributes"]["panelsJSON"]), indent=1
                )
                o["attributes"]["controlGroupInput"]["showApplySelections"] = False
                o["typeMigrationVersion"] = "10.3.0"
            o |= {"created_at": "2026-01-01", "updated_at": "2026-01-02", "version": "WzEs"}
            exported.append(json.dumps(o))
        self.answer(200, "\n".join(exported).encode())


@pytest.fixture
def stub() -> Iterator[StubKibana]:
    with StubKibana() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(
    script: str,
    stub: StubKibana,
    *arguments: str,
    code: int = 0,
    environ: dict[str, str] | None = None,
) -> tuple[str, str]:
    ended = subprocess.run(
        [sys.executable, "-m", f"kibana.{script}", "--url", stub.url, *arguments],
        cwd=PROJECT,
        env={**os.environ, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout, ended.stderr


def test_all_files_are_imported_and_read_back(stub: StubKibana) -> None:
    out, _ = run("load", stub)
    for file in FILES:
        count = len(read_objects(file))
        assert f"{file.name}: {count} objects are in Kibana 8.19.0" in out
    assert f"{stub.url}/app/dashboards#/view/smart-city-dashboard\n" in out


def test_a_kibana_that_starts_is_waited_for(stub: StubKibana) -> None:
    stub.starting = 1
    _, err = run("load", stub, str(FILE))
    assert "not ready yet" in err


def test_no_kibana_is_one_line_and_exit_1(stub: StubKibana) -> None:
    _, err = run("load", stub, "--url", "http://127.0.0.1:9", "--wait", "0", code=1)
    assert len(err.splitlines()) == 1
    assert err.startswith("load: Kibana does not answer at http://127.0.0.1:9 (")


def test_a_kibana_that_never_is_ready_is_one_line_and_exit_1(stub: StubKibana) -> None:
    stub.starting = 10**6
    _, err = run("load", stub, "--wait", "0", code=1)
    assert err.startswith("load: Kibana at ")
    assert "is not ready yet: is it started?" in err


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("newer", "refuses it (HTTP 422): Document"),
        ("missing", 'not imported: lens x: {"type": "missing_references"}'),
        ("short", "Kibana took 11 of 12 objects"),
        ("unavailable", "refuses it (HTTP 503): Kibana server is not ready yet"),
        ("proxy", "is not Kibana"),
        ("forgotten", "index-pattern smart-city-readings is not in Kibana"),
    ],
)
def test_an_import_that_did_not_work_is_noticed(stub: StubKibana, fault: str, words: str) -> None:
    stub.fault = fault
    _, err = run("load", stub, str(FILE), code=1)
    assert len(err.splitlines()) == 1
    assert words in err


@pytest.mark.parametrize(
    ("secret", "environ"),
    [
        ("ApiKey abc", {"KIBANA_API_KEY": "abc"}),
        ("Basic bW9pOnNlY3JldA==", {"KIBANA_USER": "moi", "KIBANA_PASSWORD": "secret"}),
        ("Basic bW9pOuk=", {"KIBANA_USER": "moi", "KIBANA_PASSWORD": "\udce9"}),  # not in UTF-8
    ],
)
def test_who_we_are_is_told(stub: StubKibana, secret: str, environ: dict[str, str]) -> None:
    stub.secret = secret
    run("load", stub, str(FILE), environ=environ)
    _, err = run("load", stub, str(FILE), code=1)
    assert "refuses us (HTTP 401): set KIBANA_API_KEY" in err
    assert "secret" not in err


def test_a_space_has_objects_of_its_own(stub: StubKibana) -> None:
    out, _ = run("load", stub, str(FILE), "--space", "ville")
    assert f"{stub.url}/s/ville/app/dashboards#/view/" in out
    assert list(stub.spaces) == ["ville"]


def test_what_is_exported_unchanged_is_the_same_file(stub: StubKibana, tmp_path: Path) -> None:
    for file in FILES:
        copy = tmp_path / file.name
        shutil.copy(file, copy)
        run("load", stub, str(copy))
        out, _ = run("export", stub, str(copy))
        assert out == f"{file.name}: as before\n"
        assert copy.read_bytes() == file.read_bytes()


def test_what_is_edited_in_kibana_is_a_small_difference(stub: StubKibana, tmp_path: Path) -> None:
    copy = tmp_path / FILE.name
    shutil.copy(FILE, copy)
    run("load", stub, str(copy))
    edited = stub.spaces[""]["lens", "smart-city-lens-co2"]
    edited["attributes"]["title"] = "Le CO₂"
    out, _ = run("export", stub, str(copy))
    assert out == f"{FILE.name}: changed\n"
    before, after = FILE.read_text().splitlines(), copy.read_text().splitlines()
    differing = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(differing) == 1
    assert "Le CO₂" in differing[0]


def test_the_copies_in_another_space_are_exported_as_ours(stub: StubKibana, tmp_path: Path) -> None:
    copy = tmp_path / FILE.name
    shutil.copy(FILE, copy)
    run("load", stub, str(copy))
    run("load", stub, str(copy), "--space", "ville")
    assert not stub.spaces[""].keys() & stub.spaces["ville"].keys()
    out, _ = run("export", stub, str(copy), "--space", "ville")
    assert out == f"{FILE.name}: as before\n"
    assert copy.read_bytes() == FILE.read_bytes()


def test_what_kibana_lacks_leaves_the_file_alone(stub: StubKibana, tmp_path: Path) -> None:
    copy = tmp_path / FILE.name
    shutil.copy(FILE, copy)
    _, err = run("export", stub, str(copy), code=1)
    assert len(err.splitlines()) == 1
    assert "export: Kibana lacks 12 of 12 objects (index-pattern smart-city-readings...)" in err
    assert copy.read_bytes() == FILE.read_bytes()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read"),
        ("", "holds no saved object"),
        ("{", "is not a file of saved objects"),
        ('{"id": 1}', "is not a file of saved objects"),
        ('{"id": "a", "type": "lens"}', "is not a file of saved objects"),
        ("[]", "is not a file of saved objects"),
    ],
)
def test_a_bad_file_is_one_line(
    stub: StubKibana, tmp_path: Path, text: str | None, words: str
) -> None:
    file = tmp_path / "x.ndjson"
    if text is not None:
        file.write_text(text)
    _, err = run("load", stub, str(file), code=1)
    assert len(err.splitlines()) == 1
    assert words in err


def test_each_search_and_dashboard_has_its_picture() -> None:
    until = datetime(2026, 6, 2, 2, tzinfo=timezone(timedelta(hours=2)))
    ids = {(o["type"], o["id"]): o["id"] for file in FILES for o in read_objects(file)}
    pages = capture.pages_of(ids, until, hours=24)
    assert [name for name, _, _ in pages] == [
        "01-discover-smart-city-search-readings",
        "02-smart-city-dashboard",
        "03-discover-smart-city-search-dead-letters",
        "04-smart-city-dashboard-quality",
    ]
    assert [panels for _, _, panels in pages] == [1, 10, 1, 7]
    copies = {("dashboard", "smart-city-dashboard-quality"): "copy"}
    ((name, path, _),) = capture.pages_of(copies, until, hours=24)
    assert name == "04-smart-city-dashboard-quality"
    assert path.startswith("/app/dashboards#/view/copy?")
    period = "time:(from:'2026-06-01T00:00:00.000Z',to:'2026-06-02T00:00:00.000Z')"
    assert all(period in path for _, path, _ in pages)
    pictures = sorted(file.stem for file in (PROJECT / "screenshots").glob("*.png"))
    assert pictures == [name for name, _, _ in pages]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", "localhost:5601"],
        ["--url", "http://a:b@c"],
        ["--url", "http://a:b[@c"],
        ["--url", "http://[::1"],
        ["--space", "Ma ville"],
    ],
)
def test_wrong_usage_is_exit_2(stub: StubKibana, arguments: list[str]) -> None:
    _, err = run("load", stub, *arguments, code=2)
    assert "error: argument" in err
    assert "a:b" not in err, "no password is shown"


@pytest.mark.parametrize("url", ["http://[::1]:5601/", "https://kibana", "http://h:1/a/b"])
def test_what_a_url_may_be(url: str) -> None:
    assert kibana_url(url) == url.rstrip("/")


def test_a_kibana_on_this_machine_is_asked_without_a_proxy(stub: StubKibana) -> None:
    run("load", stub, str(FILE), environ={"http_proxy": "http://127.0.0.1:9"})


@pytest.mark.parametrize("fault", ["list", "stranger"])
def test_an_answer_of_another_program_is_one_line(stub: StubKibana, fault: str) -> None:
    """Though it is JSON; and it is not waited for."""
    stub.fault = fault
    _, err = run("load", stub, str(FILE), "--wait", "5", code=1)
    (line,) = err.splitlines()
    assert " is not Kibana" in line


def test_a_file_that_cannot_be_written_is_one_line(stub: StubKibana, tmp_path: Path) -> None:
    run("load", stub, str(FILE))
    shutil.copy(FILE, copy := tmp_path / FILE.name)
    script = f"""
import sys
from pathlib import Path
from kibana import export

def refuse(file, *_, **__):
    raise PermissionError(13, "Permission denied", str(file))

Path.write_text = refuse
sys.exit(export.main(["--url", {stub.url!r}, {str(copy)!r}]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (1, f"export: {copy}: Permission denied\n")
