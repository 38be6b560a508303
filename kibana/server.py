"""What the scripts of this folder share: the way to a Kibana, and what its files hold.

Environment (or .env beside README.md; a flag wins over both):
    KIBANA_URL        default http://localhost:5601
    KIBANA_SPACE      default: the default space
    KIBANA_API_KEY, or KIBANA_USER and KIBANA_PASSWORD    where security is on
    KIBANA_CA_FILE    certificate of the authority that vouches for it (PEM), with https
"""

import argparse
import base64
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from dotenv import load_dotenv

FOLDER = Path(__file__).resolve().parent
FILES = sorted(FOLDER.glob("*.ndjson"), reverse=True)  # the readings come first
TIMEOUT_S = 60.0
RETRY_S = 2.0

SavedObject = dict[str, Any]
Key = tuple[str, str]  # type and id of a saved object


class KibanaError(Exception):
    """What went wrong with Kibana or with a file, in one line."""


class RefusedError(KibanaError):
    """Kibana does not let us in: waiting does not help."""


@dataclass(frozen=True)
class Kibana:
    """A Kibana, one of its spaces, and who we are there."""

    url: str
    space: str
    headers: Mapping[str, str] = field(repr=False)
    pool: urllib3.PoolManager = field(default_factory=urllib3.PoolManager)

    @property
    def root(self) -> str:
        """The address of the space."""
        return f"{self.url}/s/{self.space}" if self.space else self.url

    def ask(self, method: str, path: str, **arguments: Any) -> tuple[int, bytes]:
        """Send one request to a path of the space; return the status and the body.

        Raises:
            KibanaError: it does not answer.
            RefusedError: it refuses who we are.
        """
        try:
            answer = self.pool.request(
                method, f"{self.root}{path}", headers=self.headers, retries=False,
                **{"timeout": TIMEOUT_S, **arguments},
            )  # fmt: skip
        except (urllib3.exceptions.HTTPError, ValueError) as exc:
            raise KibanaError(f"Kibana does not answer at {self.url} ({exc})") from exc
        if answer.status in (401, 403):
            raise RefusedError(
                f"Kibana at {self.url} refuses us (HTTP {answer.status}): set KIBANA_API_KEY, or "
                "KIBANA_USER and KIBANA_PASSWORD, of somebody who may write saved objects"
            )
        return answer.status, answer.data

    def ask_json(self, failure: str, method: str, path: str, **arguments: Any) -> Any:
        """Send one request; return what the answer's JSON holds.

        Raises:
            KibanaError: another status than 200, after the words for this failure; no JSON.
        """
        status, body = self.ask(method, path, **arguments)
        if status != 200:
            raise KibanaError(f"{failure} (HTTP {status}): {in_short(body)}")
        try:
            return json.loads(body)
        except ValueError as exc:
            raise KibanaError(f"{failure}: what answers at {self.url} is not Kibana") from exc

    def ids(self, objects: Sequence[SavedObject]) -> dict[Key, str]:
        """Return the ids that a file's objects have in the space: (type, id) in the file -> id.

        Kibana gives new ids to what another space already holds, and notes ours as their origin.

        Raises:
            KibanaError: it lacks one, or does not answer.
        """
        query = [("type", kind) for kind in sorted({o["type"] for o in objects})]
        query += [("fields", "title"), ("per_page", "10000")]
        answer = self.ask_json(
            "Kibana does not list what it holds", "GET", "/api/saved_objects/_find", fields=query
        )
        found = {(o["type"], o["originId"]): o["id"] for o in answer["saved_objects"]
            if "originId" in o}  # fmt: skip
        found |= {(o["type"], o["id"]): o["id"] for o in answer["saved_objects"]}
        wanted = [(o["type"], o["id"]) for o in objects]
        if missing := [" ".join(key) for key in wanted if key not in found]:
            lacks = f"{len(missing)} of {len(wanted)} objects ({missing[0]}...)"
            raise KibanaError(f"Kibana lacks {lacks}: import them first, by kibana/import.py")
        return {key: found[key] for key in wanted}

    def version(self) -> str | None:
        """Return its version when it is ready, "unknown" if it hides it, None when not ready.

        Raises:
            KibanaError: it does not answer.
        """
        status, body = self.ask("GET", "/api/status", timeout=10.0)  # it may hang at first
        try:
            answer = json.loads(body)
            level = answer["status"]["overall"]["level"]
        except (ValueError, KeyError, TypeError):  # "Kibana server is not ready yet"
            return None
        if status != 200 or level not in ("available", "degraded"):
            return None
        return str(answer.get("version", {}).get("number", "unknown"))


def wait_for(kibana: Kibana, wait_s: float) -> str:
    """Return Kibana's version as soon as it is ready; it takes a minute or two to start.

    Raises:
        KibanaError: it is not, after wait_s seconds.
        RefusedError: it refuses who we are.
    """
    deadline, why = time.monotonic() + wait_s, ""
    while True:
        try:
            if version := kibana.version():
                return version
            now = f"Kibana at {kibana.url} is not ready yet"
        except RefusedError:
            raise
        except KibanaError as exc:
            now = str(exc)
        if time.monotonic() >= deadline:
            raise KibanaError(f"{now}: is it started? (docker compose up -d --wait)")
        if now != why:
            sys.stderr.write(f"waiting: {now}\n")
        why = now
        time.sleep(RETRY_S)


def read_objects(file: Path) -> list[SavedObject]:
    """Return the saved objects of a file, without the line that counts them.

    Raises:
        KibanaError: it cannot be read, or is none.
    """
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
        objects = [line for line in lines if "exportedCount" not in line]
        if not all(isinstance(found["id"], str) and found["type"] for found in objects):
            raise ValueError("an object has no id or type")
    except OSError as exc:
        raise KibanaError(f"cannot read {file}: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise KibanaError(f"{file} is not a file of saved objects: {exc}") from exc
    if not objects:
        raise KibanaError(f"{file} holds no saved object")
    return objects


def in_short(body: bytes) -> str:
    """Return the start of an answer, in one line."""
    try:
        text = str(json.loads(body).get("message") or body.decode())
    except (ValueError, AttributeError):
        text = body.decode(errors="replace")
    return " ".join(text.split())[:300]


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all scripts here have."""
    load_dotenv(FOLDER.parent / ".env")
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    url = os.environ.get("KIBANA_URL") or "http://localhost:5601"
    space = os.environ.get("KIBANA_SPACE") or ""
    found.add_argument("--url", default=url, type=kibana_url, help="environment: KIBANA_URL")
    found.add_argument("--space", default=space, type=space_id, help="environment: KIBANA_SPACE")
    found.add_argument("--wait", type=float, default=120.0, metavar="SECONDS",
        help="how long to wait until Kibana is ready (default: 120)")  # fmt: skip
    found.add_argument("files", nargs="*", type=Path, default=FILES, metavar="FILE",
        help="default: kibana/*.ndjson")  # fmt: skip
    return found


def kibana_from(options: argparse.Namespace) -> Kibana:
    """Return the Kibana of the options and of the environment's credentials."""
    return kibana_at(options.url, options.space)


def kibana_at(url: str, space: str = "") -> Kibana:
    """Return the Kibana of a URL and of the environment's credentials.

    Raises:
        SystemExit: the key cannot be one.
    """
    headers = {"kbn-xsrf": "smart-city"}  # it refuses what writes and has no such header
    user, password = os.environ.get("KIBANA_USER"), os.environ.get("KIBANA_PASSWORD")
    if key := os.environ.get("KIBANA_API_KEY"):
        if not re.fullmatch(r"[!-~]+", key):  # else the error of sending it would show it
            sys.stderr.write("KIBANA_API_KEY: a key has no space, and only ASCII characters\n")
            raise SystemExit(2)
        headers["authorization"] = f"ApiKey {key}"
    elif user and password:
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        headers["authorization"] = f"Basic {login}"
    pool = urllib3.PoolManager(ca_certs=os.environ.get("KIBANA_CA_FILE") or None)
    return Kibana(url, space, headers, pool)


def kibana_url(text: str) -> str:
    """Return an http or https URL, without the slash at its end."""
    if not re.fullmatch(r"https?://[^/@\s]+(/\S*)?", text):
        shown = re.sub(r"//.*@", "//", text)  # without a password in it
        raise argparse.ArgumentTypeError(f"{shown!r} is not like http://localhost:5601")
    return text.rstrip("/")


def space_id(text: str) -> str:
    """Return a space's id as Kibana allows it; empty: the default space."""
    if not re.fullmatch(r"[a-z0-9_-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not lower-case letters, digits, _ and -")
    return "" if text == "default" else text


def inner_json(attributes: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the places of an object's attributes that hold JSON as text: (dict, key)."""
    if isinstance(attributes, dict):
        for key, value in attributes.items():
            if isinstance(value, str) and value[:1] in ("{", "["):
                yield attributes, key
            else:
                yield from inner_json(value)
