"""Read docker-compose.yml and its overlays, as far as the start of the services needs it.

Understood: anchors, ${NAME}, ${NAME:-default}, ${NAME:?message}, $$, several -f files merged in
order, the tags !reset and !override, `environment`, `ports`, `volumes` (short form: a name, or a
path that begins with . or /; their options, such as ro,z, have no effect), `configs` with their
content or file, `depends_on`, `image`, `command`, `profiles`, `restart`. The rules are those of the
Compose specification (https://github.com/compose-spec/compose-spec, parts 8, 12, 13, 15).
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stack.console import CommandError

PROJECT = Path(__file__).resolve().parent.parent

_RESET = object()  # a value tagged !reset, whose key is removed when files are merged
_VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?(?P<missing>[^}]*))?\})"
)


class StackError(CommandError):
    """An error that the user can correct: its text is one line that says what, where, and how."""


@dataclass(frozen=True)
class Service:
    """One service of the compose file, resolved.

    Attributes:
        image: name without registry or tag, such as "cp-kafka".
        tag: the image's tag, such as "7.9.1".
        environment: the container's variables.
        ports: container port -> host port, for the published ones.
        volumes: path in the container -> volume name.
        binds: path in the container -> file or folder of this machine that is mounted there.
        configs: path in the container -> content of the file there.
        command: arguments given to the container; an empty list for the image's own.
        depends_on: names of the services that must be ready before it.
        profiles: if there are any, it is started only when one of them is asked for.
        restart: whether Compose starts it again when it ends by itself.
    """

    name: str
    image: str
    tag: str
    environment: dict[str, str]
    ports: dict[int, int]
    volumes: dict[str, str]
    binds: dict[str, Path]
    configs: dict[str, str]
    command: list[str]
    depends_on: list[str]
    profiles: list[str]
    restart: bool

    def file(self, inside: str) -> str:
        """Return what a file of the container holds: a config, or a file that is mounted."""
        if inside in self.configs:
            return self.configs[inside]
        return self.binds[inside].read_text(encoding="utf-8")


class _Override(dict[Any, Any]):
    """A mapping tagged !override, which replaces that of earlier files."""


class _Loader(yaml.SafeLoader):
    """YAML with Compose's two tags."""


def _override(loader: yaml.SafeLoader, node: yaml.Node) -> _Override:
    if not isinstance(node, yaml.MappingNode):
        raise StackError(f"!override is only understood before a mapping, not here: {node.value}")
    return _Override(loader.construct_mapping(node, deep=True))


_Loader.add_constructor("!reset", lambda loader, node: _RESET)
_Loader.add_constructor("!override", _override)


def compose_files(environ: Mapping[str, str]) -> list[Path]:
    """Return the files that COMPOSE_FILE names, as for Docker Compose, or the usual one."""
    named = environ.get("COMPOSE_FILE") or "docker-compose.yml"
    return [PROJECT / name for name in named.split(environ.get("COMPOSE_PATH_SEPARATOR") or ":")]


def load_services(files: Sequence[Path], environ: Mapping[str, str]) -> dict[str, Service]:
    """Return the services of the merged files, in an order that respects `depends_on`.

    Raises:
        StackError: a file is missing, Compose would not accept it, or it has a form that is not
            understood here.
    """
    merged: dict[str, Any] = {}
    file = files[0]
    folder = file.absolute().parent  # all relative paths start from the first file
    try:
        for file in files:
            text = file.read_text(encoding="utf-8")
            merged = _merge(merged, yaml.load(text, Loader=_Loader))  # noqa: S506
        return _resolved(_interpolate(merged, environ), folder)
    except OSError as exc:
        raise StackError(f"cannot read {file}: {exc.strerror}") from exc
    except yaml.YAMLError as exc:
        raise StackError(f"{file} is not valid YAML: {' '.join(str(exc).split())}") from exc
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as exc:
        why = f"a form that is not understood natively ({type(exc).__name__}: {exc})"
        raise StackError(f"{', '.join(map(str, files))}: {why}: see stack/compose.py") from exc


def _resolved(merged: Mapping[str, Any], folder: Path) -> dict[str, Service]:
    """Return the services of a merged file, in the order of their start."""
    configs = {n: _config_content(entry, folder) for n, entry in merged.get("configs", {}).items()}
    services = {
        name: _service(name, definition, configs, folder)
        for name, definition in merged.get("services", {}).items()
    }
    return {name: services[name] for name in _start_order(services)}


def _merge(base: Any, overlay: Any) -> Any:
    """Return base merged with overlay: mappings merge, ports add up, all else is replaced."""
    if isinstance(overlay, _Override) or not isinstance(overlay, dict):
        return overlay
    merged = dict(base) if isinstance(base, dict) else {}
    for key, value in overlay.items():
        if value is _RESET:
            merged.pop(key, None)
        elif key == "volumes" and isinstance(value, list):  # merged by the path in the container
            known = {entry.split(":")[1]: entry for entry in merged.get(key, [])}
            merged[key] = list((known | {entry.split(":")[1]: entry for entry in value}).values())
        elif key == "ports" and isinstance(value, list):  # added to those of the earlier files
            merged[key] = list(dict.fromkeys([*merged.get(key, []), *value]))
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def _interpolate(value: Any, environ: Mapping[str, str]) -> Any:
    """Return value with every ${NAME:-default} in its strings replaced.

    >>> _interpolate(["a:${TAG:-1.0}", "${HOME}", "$$x"], {"HOME": "/h", "TAG": ""})
    ['a:1.0', '/h', '$x']
    """
    if isinstance(value, dict):
        return {key: _interpolate(item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolate(item, environ) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        value = environ.get(match["name"])  # :- and :? also apply to an empty value
        if not value and match["missing"] is not None:
            raise StackError(f"{match['name']} is not set: {match['missing']}")
        return value or match["default"] or ""

    return _VARIABLE.sub(replace, value)


def _config_content(entry: Mapping[str, str], folder: Path) -> str:
    """Return a config's `content`, or the text of its `file`, in which variables are kept."""
    if "content" in entry:
        return entry["content"]
    file = folder / entry["file"]
    try:
        return file.read_text(encoding="utf-8")
    except OSError as exc:
        raise StackError(f"cannot read {file}: {exc.strerror}") from exc


def _service(
    name: str, definition: dict[str, Any], configs: Mapping[str, str], folder: Path
) -> Service:
    image, _, tag = definition["image"].rpartition("/")[2].partition(":")
    ports = [str(entry).rpartition(":") for entry in definition.get("ports", [])]
    volumes = [entry.split(":") for entry in definition.get("volumes", [])]
    environment = definition.get("environment", {})
    command = definition.get("command", [])
    return Service(
        name=name,
        image=image,
        tag=tag,
        environment={key: _as_text(value) for key, value in environment.items()},
        ports={int(inside): _port(host.rpartition(":")[2], name) for host, _, inside in ports},
        volumes={entry[1]: entry[0] for entry in volumes if entry[0][0] not in "./"},
        binds={entry[1]: (folder / entry[0]).resolve() for entry in volumes if entry[0][0] in "./"},
        configs={
            entry["target"]: configs[entry["source"]] for entry in definition.get("configs", [])
        },
        command=shlex.split(command) if isinstance(command, str) else command,
        depends_on=list(definition.get("depends_on", [])),
        profiles=definition.get("profiles", []),
        restart=definition.get("restart", "no") != "no",
    )


def _port(text: str, service: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise StackError(f"{service}: {text!r} is not a port: correct its _HOST_PORT in .env")
    return int(text)


def _as_text(value: Any) -> str:
    """Return a YAML scalar as Compose writes it into the environment."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _start_order(services: Mapping[str, Service]) -> list[str]:
    order: list[str] = []

    def visit(name: str) -> None:
        for needed in services[name].depends_on:
            if needed not in services:
                raise StackError(f"service {name} depends on {needed}, which is not defined")
            visit(needed)
        if name not in order:
            order.append(name)

    for name in services:
        visit(name)
    return order
