"""Prove on the genuine images what the tests' stand-ins cannot: `make check-images`.

    python -m tools.check_images              both parts
    python -m tools.check_images --names      the first one alone, which needs no engine

1. Every image that a compose file names is at its registry, for the processors of PCs and of recent
   Macs (`platform:` in the compose file says where there is only one). One line for each image.
2. The main file starts with monitoring and Kafka Connect, as a project of its own on the ports of
   .env, so `make down` comes first. Kibana takes its settings and the dashboards, every panel of
   Grafana gets an answer, confluent-hub has fetched the connector. Then all is removed.

Environment (or .env): the versions and ports of the compose files.

Exit codes: 0 all holds, 1 something does not (its line says what), 2 wrong usage, 130 Ctrl-C.
"""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from kibana.command_line import PROJECT, command, load_env
from stack.console import command_parser, say

COMPOSE_FILES = ("docker-compose.yml", "*/*/compose.yml", "*/*/docker-compose.yml")
PLATFORMS = ("linux/amd64", "linux/arm64")
WIDTH = 60  # of the column of images, characters
STARTED = (
    "docker-compose.yml",
    "extensions/monitoring/compose.yml",
    "extensions/connect/compose.yml",
)
COMPOSE = ("docker", "compose", "-p", "check-images", *(p for f in STARTED for p in ("-f", f)))
TIMEOUT_S = 60.0
DASHBOARD = PROJECT / "extensions/monitoring/grafana/dashboards/smart-city.json"
CONNECTOR = "io.confluent.connect.elasticsearch.ElasticsearchSinkConnector"


class Loader(yaml.SafeLoader):
    """YAML in which Compose's tags (!reset) stand for nothing."""


Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def images(environ: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the images that the compose files need: name and tag -> for which platforms.

    Where a file has its image built here, it needs the one that this is built from.
    """
    found: dict[str, tuple[str, ...]] = {}
    for file in sorted(file for pattern in COMPOSE_FILES for file in PROJECT.glob(pattern)):
        services = yaml.load(file.read_text(encoding="utf-8"), Loader)["services"]  # noqa: S506
        for service in services.values():
            if service and "image" in service:
                name = re.sub(
                    r"\$\{(\w+):-([^}]*)\}",
                    lambda match: environ.get(match[1]) or match[2],
                    service["image"],
                )
                if "build" in service:
                    text = (PROJECT / service["build"]["dockerfile"]).read_text(encoding="utf-8")
                    name = text.partition("\nFROM ")[2].split()[0]
                found[name] = (service["platform"],) if "platform" in service else PLATFORMS
    return found


def platforms(image: str) -> tuple[set[str], str]:
    """Return the platforms that a registry has an image for, and why there are none."""
    environ = {**os.environ, "DOCKER_CLI_EXPERIMENTAL": "enabled"}  # for a Docker before 20.10
    asked = subprocess.run(
        ["docker", "manifest", "inspect", "--verbose", image],
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if asked.returncode:
        return set(), (asked.stderr.strip().splitlines() or ["no answer"])[-1]
    answer = json.loads(asked.stdout)
    entries = (
        answer if isinstance(answer, list) else [answer]
    )  # one image, or one for each platform
    given = [entry["Descriptor"]["platform"] for entry in entries]
    return {f"{platform['os']}/{platform['architecture']}" for platform in given}, ""


def check_names() -> bool:
    """Print a line for each image; return whether all are there, for all that need them."""
    all_there = True
    for image, needed in images(os.environ).items():
        there, why = platforms(image)
        missing = [platform for platform in needed if platform not in there]
        all_there &= not missing
        what = why or (f"not for {', '.join(missing)}" if missing else " ".join(needed))
        say(f"{'✗' if missing else '✓'} {image:<{WIDTH}} {what}")
    return all_there


def ask(url: str, body: Any = None) -> Any:
    """Return a server's answer in JSON.

    Raises:
        OSError, ValueError: it does not answer, or otherwise.
    """
    data = json.dumps(body).encode() if body else None
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers)  # noqa: S310  # http, on loopback
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # none for loopback
    with opener.open(request, timeout=TIMEOUT_S) as response:
        return json.load(response)


def silent_panels(url: str) -> list[str]:
    """Return the titles of the panels of Grafana's dashboard that get no answer.

    Raises:
        OSError, ValueError: Grafana does not answer, or does not have the dashboard.
    """
    uid = json.loads(DASHBOARD.read_text(encoding="utf-8"))["uid"]
    silent = []
    for panel in ask(f"{url}/api/dashboards/uid/{uid}")["dashboard"]["panels"]:
        queries = [{"refId": "A", "instant": True, **target} for target in panel.get("targets", [])]
        if queries:
            answer = ask(f"{url}/api/ds/query", {"queries": queries, "from": "now-1h", "to": "now"})
            if any("error" in result for result in answer["results"].values()):
                silent.append(str(panel["title"]))
    return silent


def start_servers() -> str:
    """Start all servers; return why they did not. Healthy means that each took its settings."""
    ended = subprocess.run([*COMPOSE, "up", "-d", "--wait"], cwd=PROJECT, check=False)
    return f"docker compose ended with code {ended.returncode}" if ended.returncode else ""


def load_dashboards() -> str:
    """Load the dashboards into Kibana; return why it did not take them."""
    line = [sys.executable, "-m", "kibana.load"]
    return "see above" if subprocess.run(line, cwd=PROJECT, check=False).returncode else ""


def query_panels() -> str:
    """Ask Grafana for what its panels show; return which show nothing."""
    return ", ".join(silent_panels(f"http://127.0.0.1:{port('GRAFANA_HOST_PORT', 3000)}"))


def find_connector() -> str:
    """Look for Confluent's connector in Kafka Connect; return why it is not there."""
    plugins = ask(f"http://127.0.0.1:{port('CONNECT_HOST_PORT', 8083)}/connector-plugins")
    return "" if any(plugin["class"] == CONNECTOR for plugin in plugins) else f"no {CONNECTOR}"


def port(variable: str, default: int) -> int:
    """Return a port of the compose files."""
    return int(os.environ.get(variable) or default)


# What is proven on running servers -> what returns why it does not hold, "" when it does.
PROOFS: dict[str, Callable[[], str]] = {
    "the servers start with their settings": start_servers,
    "Kibana takes the dashboards": load_dashboards,
    "Grafana's panels get an answer": query_panels,
    "confluent-hub has fetched the connector": find_connector,
}


def check_servers() -> bool:
    """Start the servers, print a line for each proof, remove the servers; return success."""
    all_hold = True
    try:
        for what, proof in PROOFS.items():
            try:
                why = proof()
            except (OSError, ValueError, KeyError) as exc:
                why = repr(exc)
            all_hold &= not why
            say(f"{'✗' if why else '✓'} {what:<{WIDTH}} {why}".rstrip())
            if why and proof is start_servers:
                break
    finally:
        subprocess.run([*COMPOSE, "down", "-v"], cwd=PROJECT, check=False)
    return all_hold


@command("check_images")
def main(argv: Sequence[str] | None = None) -> int:
    """Check the images' names, then the images; return the exit code."""
    parser = command_parser("tools.check_images", __doc__)
    parser.add_argument("--names", action="store_true", help="only whether the images exist")
    arguments = parser.parse_args(argv)
    load_env()
    if not check_names():
        return 1
    return 0 if arguments.names or check_servers() else 1


if __name__ == "__main__":
    raise SystemExit(main())
