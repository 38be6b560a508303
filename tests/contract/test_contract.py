"""What must agree across files: fields, variables, the compose files."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints
from unittest.mock import patch

import jsonschema
import msgspec
import pytest
import yaml

import kafka_to_elasticsearch as indexer
import sensor_generator as generator
from stack.compose import StackError, load_services
from tools import secure

PROJECT = Path(__file__).resolve().parents[2]
MAPPING = json.loads((PROJECT / "mappings/sensors_data.json").read_text())
PROPERTIES: dict[str, Any] = MAPPING["mappings"]["properties"]
README = PROJECT / "README.md"
COMPOSE = PROJECT / "docker-compose.yml"
KRAFT, SECURE = PROJECT / "docker-compose.kraft.yml", PROJECT / "docker-compose.secure.yml"
OVERLAYS = sorted([*PROJECT.glob("docker-compose.*.yml"), *PROJECT.glob("pipelines/*/compose.yml")])


def in_project(file: Path) -> str:
    """Return a file's name below the project's folder, to name a test."""
    return str(file.relative_to(PROJECT))


ELASTIC_TYPES = {str: {"keyword", "date"}, float: {"float"}, int: {"integer"}}


SCHEMA = json.loads((PROJECT / "mappings/reading.v1.schema.json").read_text())


def generated(*argv: str) -> list[bytes]:
    """Return what the generator prints, line by line."""
    command = [sys.executable, "sensor_generator.py", "--console", "--seed", "1", *argv]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, check=True).stdout.splitlines()


def generator_options(*argv: str) -> Any:
    return generator.parse_options(generator.option_parser(""), argv)


def a_reading() -> dict[str, Any]:
    return dict(json.loads(generated("--backfill", "1m")[0]))


def field_table() -> dict[str, list[str]]:
    """Return README's table of fields: name -> [JSON, Elasticsearch, unit, range]."""
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", README.read_text(), flags=re.MULTILINE)
    return {
        name: [cell.strip() for cell in cells.split("|")]
        for name, cells in rows
        if name in PROPERTIES
    }


# Fields


def test_generator_mapping_consumer_and_readme_have_the_same_fields() -> None:
    reading = a_reading()
    assert list(reading) == list(PROPERTIES) == list(field_table())
    assert tuple(reading) == indexer.Reading.__struct_fields__


def test_types_agree() -> None:
    for name, value in a_reading().items():
        assert PROPERTIES[name]["type"] in ELASTIC_TYPES[type(value)], name
        assert field_table()[name][1] == f"`{PROPERTIES[name]['type']}`"
    for name, kind in get_type_hints(indexer.Reading).items():
        assert PROPERTIES[name]["type"] in ELASTIC_TYPES[kind]


def test_units_and_ranges_agree_with_readme() -> None:
    schema = msgspec.json.schema(indexer.Reading)["$defs"]["Reading"]["properties"]
    measured = {name: found for name, found in schema.items() if found["type"] != "string"}
    assert len(measured) == 4
    for name, found in measured.items():
        low, high = found["minimum"], found["maximum"]
        unit, shown = field_table()[name][2:]
        assert unit == PROPERTIES[name]["meta"]["unit"]
        digits = re.sub(r"(?<=\d)\s(?=\d)", "", shown).replace("−", "-")
        assert [float(number) for number in digits.split(" à ")] == [low, high]


def test_the_consumer_takes_what_the_generator_makes() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    values = generated("--backfill", "2h")
    assert len(values) > 1000
    for value in values:
        reading = json.loads(value)
        assert msgspec.structs.asdict(indexer.parse_reading(value)) == reading
        validator.validate(reading)


def test_the_schema_is_the_consumer_s() -> None:
    checked = msgspec.json.schema(indexer.Reading)["$defs"]["Reading"]
    # Checked beside the decoder.
    checked["properties"]["sensor_id"]["pattern"] = f"^{indexer.SENSOR_ID.pattern}$"
    rules = {
        name: {key: rule for key, rule in field.items() if key not in ("description", "format")}
        for name, field in SCHEMA["properties"].items()
    }
    assert rules == checked["properties"]
    assert SCHEMA["required"] == checked["required"] == list(PROPERTIES)
    assert SCHEMA["additionalProperties"] is checked["additionalProperties"] is False


def test_mapping_refuses_what_it_does_not_know() -> None:
    assert MAPPING["mappings"]["dynamic"] == "strict"


# Variables


def variables(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", text, flags=re.MULTILINE))


def defaults(source: str) -> dict[str, str]:
    """Return the variables of a script's options with their defaults."""
    return dict(re.findall(r'"(KAFKA_\w+|ELASTICSEARCH_\w+)",\s+"([^"]+)"', source))


def test_env_example_names_every_variable_with_its_default() -> None:
    example = variables((PROJECT / ".env.example").read_text())
    used: dict[str, str] = {}
    for file in (COMPOSE, *OVERLAYS):
        used |= dict(re.findall(r"\$\{(\w+):-([^}]*)\}", file.read_text()))
    for script in ("sensor_generator.py", "kafka_to_elasticsearch.py"):
        used |= defaults((PROJECT / script).read_text())
    for file in PROJECT.glob("pipelines/*/**/*.py"):  # what each says of itself
        documented = file.read_text().partition('"""')[2].partition('"""')[0]
        used |= dict(re.findall(r"^    ([A-Z0-9_]+) +default (\S+)$", documented, re.MULTILINE))
        optional = re.findall(r"^    ([A-Z0-9_]+) +\S.*\(default: ", documented, re.MULTILINE)
        used |= dict.fromkeys(optional, "")
    used |= dict.fromkeys(
        re.findall(r'"(STACK_\w+|JAVA_HOME)"', (PROJECT / "stack/__main__.py").read_text()), ""
    )
    used |= dict.fromkeys(
        re.findall(r'"(STACK_\w+|JAVA_HOME)"', (PROJECT / "stack/servers.py").read_text()), ""
    )
    kibana = (PROJECT / "kibana/server.py").read_text()
    used |= dict.fromkeys(re.findall(r'"(KIBANA_\w+)"', kibana), "")
    used |= dict(re.findall(r'"(KIBANA_\w+)"\) or "([^"]+)"', kibana))
    # What an overlay requires has its value in .env.example only.
    required = {
        n for f in OVERLAYS if f != SECURE for n in re.findall(r"\$\{(\w+):\?", f.read_text())
    }
    assert not required & used.keys()
    assert all(example[name] for name in required)
    used |= {name: example[name] for name in required}
    # The secure variant: what is empty by default, or has the default of the other variants.
    used |= {name: used.get(name, "") for name in [*secure.settings({}), *secure.new_secrets()]}
    used |= {"COMPOSE_FILE": "docker-compose.yml", "CONSUMER_ELASTICSEARCH_API_KEY": ""}
    assert example == used


def test_the_secure_variant_does_not_start_with_the_placeholders_of_env_example() -> None:
    example = variables((PROJECT / ".env.example").read_text())
    secrets = set(re.findall(r"\$\{(\w+):\?", SECURE.read_text()))
    assert secrets == {"KIBANA_SERVICE_TOKEN", "KIBANA_ENCRYPTION_KEY"}
    for name in secrets:
        others = dict.fromkeys(secrets - {name}, "a secret")
        with pytest.raises(StackError, match=rf"{name} is not set: run python tools/secure.py"):
            load_services((COMPOSE, KRAFT, SECURE), {**example, **others})


SCRIPTS = ("sensor_generator.py", "kafka_to_elasticsearch.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_s_help_names_its_variables_with_their_defaults(script: str) -> None:
    environ = {**os.environ, "COLUMNS": "500"}
    command = [sys.executable, script, "--help"]
    shown = subprocess.run(
        command, cwd=PROJECT, env=environ, capture_output=True, text=True, check=True
    ).stdout
    variables = defaults((PROJECT / script).read_text())
    assert variables.keys() >= {"KAFKA_BOOTSTRAP_SERVERS", "KAFKA_TOPIC"}
    for name, default in variables.items():
        assert re.search(rf"environment: {name}\W+default: {re.escape(default)}", shown)


def test_both_scripts_have_the_same_defaults() -> None:
    ours, theirs = generator_options(), indexer.parse_options([], {})
    for name in ("bootstrap_servers", "topic", "wait", "metrics_port"):
        assert getattr(ours, name) == getattr(theirs, name)


def is_taken(judge: Callable[[str], object], text: str) -> bool:
    try:
        judge(text)
    except argparse.ArgumentTypeError:
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "texts", "expected"),
    [
        ("topic_name", ["a", "a.b_c-D9", "x" * 200], True),
        ("topic_name", ["", " ", ".", "..", "a/b", "a b", "é", "a\n", "x" * 250], False),
        ("server_list", ["localhost:9092", "[::1]:9092", "a:1,b:65535"], True),
        (
            "server_list",
            ["", " ", "localhost", "a:", "a:b", "a:0", "a:65536", "a:1,", "::1:9"],
            False,
        ),
    ],
)
def test_both_scripts_judge_addresses_and_names_alike(
    kind: str, texts: list[str], expected: bool
) -> None:
    """What both need is written twice, so that each script stands alone."""
    for script in (generator, indexer):
        judge = getattr(script, kind)
        assert [text for text in texts if is_taken(judge, text) is not expected] == []


@pytest.fixture(params=[generator, indexer], ids=SCRIPTS)
def load_env(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[bytes], dict[str, str]]:
    """Return what a script takes from a .env of some content, as the environment after it."""

    def load(content: bytes) -> dict[str, str]:
        (tmp_path / ".env").write_bytes(content)
        with patch.dict(os.environ, {"KAFKA_TOPIC": "real"}, clear=True):
            request.param.load_env(tmp_path / ".env")
            return dict(os.environ)

    return load


def test_env_is_read_and_the_real_environment_wins(
    load_env: Callable[[bytes], dict[str, str]],
) -> None:
    content = b"\xef\xbb\xbfA=first\r\n\r\n# a comment\r\nexport B='x y'\r\nKAFKA_TOPIC=file\r\n"
    expected = {"A": "first", "B": "x y", "KAFKA_TOPIC": "real", "C": "é #", "D": ""}
    assert load_env(content + 'C = "é #"\nD='.encode()) == expected


@pytest.mark.parametrize(
    "line",
    [
        b"KAFKA_TOPIC: s3cr3t",
        b"KAFKA_TOPIC:s3cr3t",
        b"KAFKA_TOPIC s3cr3t",
        b"KAFKA_TOPIC",
        b'KAFKA_TOPIC="s3cr3t',
        b"KAFKA_TOPIC='s3cr3t",
        b'KAFKA_TOPIC="s3cr3t" x',
        b"=s3cr3t",
        b"KAFKA_TOPIC=s3cr3t\xe9",  # Latin-1
        b"KAFKA_TOPIC=s3cr3t\0",
    ],
)
def test_a_line_of_env_that_says_nothing_is_refused_by_its_number_and_not_shown(
    line: bytes, load_env: Callable[[bytes], dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises((generator.SetupError, indexer.SetupError)) as refusal:
        load_env(b"A=a\n\n" + line + b"\nB=b\n")
    assert ".env, line 3: " in str(refusal.value)
    assert "s3cr3t" not in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert caplog.text == ""  # python-dotenv's own words would be a second line


@pytest.mark.parametrize("script", [generator, indexer], ids=SCRIPTS)
def test_an_env_may_be_absent_but_not_unreadable(script: Any, tmp_path: Path) -> None:
    script.load_env(tmp_path / ".env")
    (tmp_path / ".env").mkdir()
    with pytest.raises(script.SetupError, match=r"\.env"):
        script.load_env(tmp_path / ".env")


# Compose


def without_resets(file: Path) -> str:
    """Return a compose file without the lines that !reset, a tag that plain YAML does not know."""
    return re.sub(r"^.*!reset null.*\n", "", file.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("file", [COMPOSE, *OVERLAYS], ids=in_project)
def test_compose_file_is_valid_by_the_schema(file: Path, tmp_path: Path) -> None:
    plain = tmp_path / file.name
    plain.write_text(without_resets(file))
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(plain)]
    environ = {**os.environ, "PATH": f"{PROJECT}/.venv/bin:{os.environ['PATH']}"}
    checked = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert checked.returncode == 0, checked.stdout


def resolved(*files: Path) -> dict[str, Any]:
    """Return the files as Compose's own library resolves them.

    That is docker compose or the older docker-compose; with an overlay, which the older one does
    not understand, docker compose or compose-go (the library of docker compose, as
    `go install github.com/compose-spec/compose-go/v2/cmd` makes it, named by COMPOSE_GO).
    """
    candidates = []
    if compose_go := os.environ.get("COMPOSE_GO"):
        candidates.append([compose_go, *map(str, files)])
    chosen = [part for file in files for part in ("-f", str(file))]
    version = ["docker", "compose", "version"]
    if shutil.which("docker") and subprocess.run(version, capture_output=True).returncode == 0:
        candidates.append(["docker", "compose", *chosen, "config"])
    if shutil.which("docker-compose") and len(files) == 1:
        candidates.append(["docker-compose", *chosen, "config"])
    printed = ""
    for command in candidates:
        found = subprocess.run(
            command, cwd=files[0].parent, capture_output=True, text=True, check=False
        )
        if found.returncode == 0:
            return dict(yaml.safe_load(found.stdout))
        printed += found.stderr
    if not candidates and not os.environ.get("CI"):
        pytest.skip("needs docker compose 2.24 or compose-go (COMPOSE_GO): neither is here")
    raise AssertionError(f"Compose does not accept the file, or is not here: {printed}")


def environment(service: dict[str, Any]) -> dict[str, str]:
    """Return a service's variables, given as a mapping or as a list."""
    given = service.get("environment", {})
    pairs = given.items() if isinstance(given, dict) else (entry.split("=", 1) for entry in given)
    return {name: str(value) for name, value in pairs}


def published(port: dict[str, Any] | str) -> tuple[int, int]:
    """Return the container's port and the host's, as each Compose writes them."""
    if isinstance(port, dict):
        return int(port["target"]), int(port["published"])
    *_, host, inside = port.removesuffix("/tcp").split(":")
    return int(inside), int(host)


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """Return what a container sees of this machine: its path -> ours."""
    given = (
        dict(zip(("source", "target"), volume.split(":"), strict=False))
        if isinstance(volume, str)
        else volume
        for volume in service.get("volumes", [])
    )
    return {v["target"]: Path(v["source"]) for v in given if v["source"].startswith("/")}


@pytest.mark.parametrize(
    "files",
    [(COMPOSE,), (COMPOSE, KRAFT, SECURE), *((COMPOSE, o) for o in OVERLAYS if o != SECURE)],
    ids=lambda files: in_project(files[-1]),
)
def test_the_native_stack_reads_the_files_as_compose_does(
    files: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = variables((PROJECT / ".env.example").read_text())
    copies = [tmp_path / f"{number}.yml" for number, _ in enumerate(files)]
    for file, copy in zip(files, copies, strict=True):  # compose-go alone knows no variables
        required = re.compile(r"\$\{(\w+):\?[^}]*\}")
        copy.write_text(required.sub(lambda match: example[match[1]] or "x", file.read_text()))
    shutil.copytree(PROJECT / "monitoring", tmp_path / "monitoring")  # files that they name
    monkeypatch.setenv("COMPOSE_PROFILES", "*")
    monkeypatch.delenv("ELASTICSEARCH_HEAP")  # of the tests' own servers
    theirs = resolved(*copies)["services"]
    ours = load_services(copies, {})
    assert set(ours) == set(theirs)
    for name, service in ours.items():
        assert f"{service.image}:{service.tag}" == theirs[name]["image"].rpartition("/")[2]
        assert service.environment == environment(theirs[name])
        assert set(service.depends_on) == set(theirs[name].get("depends_on", {}))
        assert service.profiles == theirs[name].get("profiles", [])
        assert service.ports == dict(map(published, theirs[name].get("ports", [])))
        configs = theirs[name].get("configs", [])
        assert set(service.configs) == {config["target"] for config in configs}
        assert service.binds == mounts(theirs[name])


def test_the_services_are_those_that_the_readme_names() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert set(services) == {"zookeeper", "kafka", "elasticsearch", "kibana"}


@pytest.mark.parametrize("file", [COMPOSE, *OVERLAYS], ids=in_project)
def test_every_image_is_pinned_and_every_port_is_on_loopback(file: Path) -> None:
    services = yaml.safe_load(without_resets(file))["services"]
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        if "image" not in service:  # an overlay adds to a service of the root file
            continue
        assert re.search(r":\$\{\w+_VERSION:-[^}]*\d[^}]*\}(-[\w.-]+)?$", service["image"]), name
        assert service["healthcheck"]["test"], name
        conditions = [need["condition"] for need in service.get("depends_on", {}).values()]
        assert set(conditions) <= {"service_healthy"}


def test_every_port_of_the_secure_variant_is_on_loopback_and_every_server_has_tls() -> None:
    services = yaml.safe_load(SECURE.read_text())["services"]
    assert set(services) == {"kafka", "elasticsearch", "kibana"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    protocols = services["kafka"]["environment"]["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"]
    assert set(re.findall(r":(\w+)", protocols)) == {"SSL", "SASL_SSL"}
    assert services["elasticsearch"]["environment"]["xpack.security.http.ssl.enabled"] == "true"
    assert services["kibana"]["environment"]["SERVER_SSL_ENABLED"] == "true"


@pytest.mark.parametrize("file", [COMPOSE, *OVERLAYS], ids=in_project)
def test_elasticsearch_makes_any_index_that_a_document_asks_for(file: Path) -> None:
    """So that a script of the reader's own may index at once, as the exercise does."""
    assert "auto_create_index" not in file.read_text()


def test_kibana_has_the_version_of_elasticsearch() -> None:
    services = load_services([COMPOSE], {"ELASTIC_VERSION": "8.19.99"})
    assert services["kibana"].tag == services["elasticsearch"].tag == "8.19.99"


# Kafka Connect

# Of the connector's own options (docs.confluent.io, "Configuration Reference for Elasticsearch
# Service Sink Connector", 16.0) those that we use or might.
CONFLUENT_OPTIONS = {
    "batch.size", "behavior.on.malformed.documents", "behavior.on.null.values", "bulk.size.bytes",
    "connection.password", "connection.url", "connection.username", "drop.invalid.message",
    "external.resource.usage", "flush.synchronously", "flush.timeout.ms", "key.ignore", "linger.ms",
    "max.in.flight.requests", "max.retries", "read.timeout.ms", "retry.backoff.ms", "schema.ignore",
    "topic.to.external.resource.mapping", "write.method",
}  # fmt: skip
# Of any sink (kafka.apache.org/39, "Sink Connector Configs").
SINK_OPTIONS = {
    "connector.class", "errors.deadletterqueue.context.headers.enable",
    "errors.deadletterqueue.topic.name", "errors.deadletterqueue.topic.replication.factor",
    "errors.log.enable", "errors.tolerance", "key.converter", "tasks.max", "topics", "transforms",
    "value.converter", "value.converter.schemas.enable",
}  # fmt: skip


def test_the_two_connectors_have_documented_options_and_agree() -> None:
    """Camel's own are checked by the worker that runs it, tests/integration/test_connect.py."""
    camel, confluent = (
        json.loads((PROJECT / f"connect/{name}.json").read_text())
        for name in ("camel", "confluent")
    )
    assert set(confluent) <= CONFLUENT_OPTIONS | SINK_OPTIONS
    others = {
        name for name in camel if not re.match(r"camel|transforms\.|consumer\.override", name)
    }
    assert others <= SINK_OPTIONS
    same = SINK_OPTIONS - {"connector.class", "transforms"}
    assert {n: camel.get(n) for n in same} == {n: confluent.get(n) for n in same}
    assert camel["topics"] == generator_options().topic
    assert confluent["topic.to.external.resource.mapping"] == f"{camel['topics']}:sensors_connect"
    assert "indexName=sensors_connect&" in camel["camel.sink.url"]


# The tree


@pytest.mark.parametrize(
    ("script", "allowed"),
    [
        ("sensor_generator.py", {"dotenv", "kafka", "prometheus_client", "tqdm"}),
        (
            "kafka_to_elasticsearch.py",
            {"dotenv", "elasticsearch", "kafka", "msgspec", "prometheus_client"},
        ),
    ],
)
def test_a_script_needs_these_libraries_and_nothing_of_the_project(
    script: str, allowed: set[str]
) -> None:
    pattern = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
    imported = set(pattern.findall((PROJECT / script).read_text()))
    assert imported - sys.stdlib_module_names == allowed


def test_readme_names_only_files_that_are_there() -> None:
    named = re.findall(
        r"`([\w./-]+/|[\w./-]+\.(?:py|yml|json|txt|md|toml|example))`", README.read_text()
    )
    made = {".env", ".secure/"}
    missing = [name for name in set(named) - made if not (PROJECT / name).exists()]
    assert missing == []
