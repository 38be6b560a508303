"""A client of Kibana's saved objects, and the options of the commands that use it.

The environment that it reads stands in kibana/load.py.
"""

import argparse
import base64
import json
import os
import re
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3

from kafka_to_elasticsearch import SetupError, number
from kibana.command_line import PROJECT, load_env, variable
from stack.console import CommandError, command_parser

FILES = sorted((PROJECT / "kibana").glob("*.ndjson"), reverse=True)  # the readings come first
TIMEOUT_S = 60.0
RETRY_S = 2.0

SavedObject = dict[str, Any]
SHAPE = {"type": str, "id": str, "attributes": dict, "references": list}  # of a saved object
Key = tuple[str, str]  # type and id of a saved object


class KibanaError(CommandError):
    """What went wrong with Kibana or with a file, in one line."""


class RefusedError(KibanaError):
    """Kibana does not let us in, or it is another program, so that waiting does not help."""


@dataclass(frozen=True)
class Kibana:
    """A Kibana, one of its spaces, and who we are there."""

    url: str
    space: str
    headers: Mapping[str, str] = field(repr=False)
    pool: urllib3.PoolManager = field(repr=False)  # it uses no proxy of the environment

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
                method,
                f"{self.root}{path}",
                headers=self.headers,
                retries=False,
                **{"timeout": TIMEOUT_S, **arguments},
            )
        except (urllib3.exceptions.HTTPError, ValueError) as exc:
            raise KibanaError(f"Kibana does not answer at {self.url} ({exc})") from exc
        if answer.status in (401, 403):
            raise RefusedError(
                f"Kibana at {self.url} refuses us (HTTP {answer.status}): set KIBANA_API_KEY, or "
                "KIBANA_USER and KIBANA_PASSWORD, of somebody who may write saved objects"
            )
        return answer.status, answer.data

    def ask_json(self, failure: str, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """Send one request; return the JSON object in the answer.

        Raises:
            KibanaError: another status than 200, or no object; the text begins with `failure`.
            RefusedError: Kibana refuses who we are.
        """
        status, body = self.ask(method, path, **arguments)
        if status != 200:
            raise KibanaError(f"{failure} (HTTP {status}): {in_short(body)}")
        answer = None
        with suppress(ValueError):
            answer = json.loads(body)
        if not isinstance(answer, dict):
            raise KibanaError(f"{failure}: what answers at {self.url} is not Kibana")
        return answer

    def ids(self, objects: Sequence[SavedObject]) -> dict[Key, str]:
        """Return the ids that a file's objects have in the space: (type, id) in the file -> id.

        Kibana gives a new id to an object that another space already holds, and keeps ours as its
        originId.

        Raises:
            KibanaError: Kibana lacks an object, or does not answer.
        """
        query = [("type", kind) for kind in sorted({o["type"] for o in objects})]
        query += [("fields", "title"), ("per_page", "10000")]
        answer = self.ask_json(
            "Kibana does not list what it holds", "GET", "/api/saved_objects/_find", fields=query
        )
        saved = answer.get("saved_objects", [])
        found = {(o["type"], o["originId"]): o["id"] for o in saved if "originId" in o}
        found |= {(o["type"], o["id"]): o["id"] for o in saved}
        wanted = [(o["type"], o["id"]) for o in objects]
        if missing := [" ".join(key) for key in wanted if key not in found]:
            lacks = f"{len(missing)} of {len(wanted)} objects ({missing[0]}...)"
            raise KibanaError(f"Kibana lacks {lacks}: import them first, by python -m kibana.load")
        return {key: found[key] for key in wanted}

    def version(self) -> str | None:
        """Return Kibana's version, "unknown" where it hides it, None as long as it is not ready.

        Raises:
            KibanaError: it does not answer.
            RefusedError: it refuses who we are, or another program answers.
        """
        status, body = self.ask("GET", "/api/status", timeout=10.0)  # a start may hang it
        try:
            answer = json.loads(body)
            level = answer["status"]["overall"]["level"]
        except (ValueError, KeyError, TypeError) as exc:
            if status >= 500:  # "Kibana server is not ready yet", or a proxy says so
                return None
            text = f"what answers at {self.url} is not Kibana (HTTP {status})"
            raise RefusedError(text) from exc
        if status != 200 or level not in ("available", "degraded"):
            return None
        return str(answer.get("version", {}).get("number", "unknown"))


def wait_for(kibana: Kibana, wait_s: float) -> str:
    """Return Kibana's version as soon as it is ready; its start takes a minute or two.

    Raises:
        KibanaError: it is not ready after wait_s seconds.
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
        KibanaError: the file cannot be read, or holds no saved objects.
    """
    try:
        text = file.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.split("\n") if line]
        objects = [line for line in lines if "exportedCount" not in line]
        if not all(isinstance(o[name], kind) for o in objects for name, kind in SHAPE.items()):
            raise TypeError(f"an object's {', '.join(SHAPE)} are not what they must be")
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


def kibana_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of all commands for Kibana; the module is its prog.

    Raises:
        SetupError: .env or a variable is wrong.
    """
    load_env()
    parser = command_parser(module, description)
    url, space = default_url(), variable("KIBANA_SPACE", space_id, "")
    parser.add_argument("--url", default=url, type=kibana_url, help="environment: KIBANA_URL")
    parser.add_argument("--space", default=space, type=space_id, help="environment: KIBANA_SPACE")
    text = "how long to wait until Kibana is ready (default: 120)"
    seconds = number(0, 1e9)
    parser.add_argument("--wait", type=seconds, default=120.0, metavar="SECONDS", help=text)
    text = "default: kibana/*.ndjson"
    parser.add_argument("files", nargs="*", type=Path, default=FILES, metavar="FILE", help=text)
    return parser


def default_url() -> str:
    """Return KIBANA_URL. Raises SetupError: it is not one."""
    port = os.environ.get("KIBANA_HOST_PORT") or 5601
    return variable("KIBANA_URL", kibana_url, f"http://localhost:{port}")


def kibana_at(url: str, space: str = "") -> Kibana:
    """Return the Kibana of a URL and of the environment's credentials.

    Raises:
        SetupError: a variable is wrong.
    """
    headers = {"kbn-xsrf": "smart-city"}  # Kibana refuses a change without this header
    names = ("USER", "PASSWORD", "API_KEY", "CA_FILE")
    user, password, key, file = (os.environ.get(f"KIBANA_{name}", "").strip() for name in names)
    if bool(user) != bool(password):
        raise SetupError("KIBANA_USER and KIBANA_PASSWORD: set both, or neither")
    if key:
        if not re.fullmatch(r"[!-~]+", key):  # otherwise the error of sending it would show it
            raise SetupError("KIBANA_API_KEY: a key has no space, and only ASCII characters")
        headers["authorization"] = f"ApiKey {key}"
    elif user:
        login = f"{user}:{password}".encode(errors="surrogateescape")  # whatever the shell's bytes
        headers["authorization"] = f"Basic {base64.b64encode(login).decode()}"
    try:
        context = ssl.create_default_context(cafile=file or None)
    except OSError as exc:
        raise SetupError(f"KIBANA_CA_FILE: {file} has no certificates ({exc})") from exc
    return Kibana(url, space, headers, urllib3.PoolManager(ssl_context=context))


def kibana_url(text: str) -> str:
    """Return an http or https URL, without the slash at its end. The error shows no secret."""
    pattern = r"https?://(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d+)?(/[\w.~%/-]*)?"
    is_url = False
    with suppress(ValueError):  # a host or a port that cannot exist
        is_url = bool(text.isascii() and re.fullmatch(pattern, text) and urlsplit(text).port != 0)
    if not is_url:
        raise argparse.ArgumentTypeError(
            "not like http://localhost:5601; a user and a password are not part of it, but in "
            "KIBANA_USER and KIBANA_PASSWORD"
        )
    return text.rstrip("/")


def space_id(text: str) -> str:
    """Return a space's id, if Kibana allows it; the default space is "" or "default"."""
    if not re.fullmatch(r"[a-z0-9_-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not lower-case letters, digits, _ and -")
    return "" if text == "default" else text
