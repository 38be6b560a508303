"""What must agree across files: fields, variables, the compose files."""

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_type_hints

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


def a_reading() -> dict[str, Any]:
    config = generator.load_config(["--seed", "1"], {}, datetime.now(UTC))
    return dict(json.loads(next(generator.all_messages(config)).value))


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
    config = generator.load_config(["--seed", "1", "--backfill", "2h"], {}, datetime.now(UTC))
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for message in generator.all_messages(config):
        reading = json.loads(message.value)
        assert msgspec.structs.asdict(indexer.parse_reading(message.value)) == reading
        validator.validate(reading)


def test_the_schema_is_the_consumer_s_and_the_generator_s() -> None:
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
    limits = {n: (f["minimum"], f["maximum"]) for n, f in rules.items() if "minimum" in f}
    assert limits == generator.LIMITS


def test_mapping_refuses_what_it_does_not_know() -> None:
    assert MAPPING["mappings"]["dynamic"] == "strict"


# Variables


def variables(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", text, flags=re.MULTILINE))


def test_env_example_names_every_variable_with_its_default() -> None:
    example = variables((PROJECT / ".env.example").read_text())
    used: dict[str, str] = {}
    for file in (COMPOSE, *OVERLAYS):
        used |= dict(re.findall(r"\$\{(\w+):-([^}]*)\}", file.read_text()))
    for script in ("sensor_generator.py", "kafka_to_elasticsearch.py"):
        source = (PROJECT / script).read_text()
        used |= dict(re.findall(r'"(KAFKA_\w+|ELASTICSEARCH_\w+)", "([^"]+)"', source))
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
    used |= {"ELASTICSEARCH_INDEX_BY": ""}  # one index
    assert example == used


def test_the_secure_variant_does_not_start_with_the_placeholders_of_env_example() -> None:
    example = variables((PROJECT / ".env.example").read_text())
    secrets = set(re.findall(r"\$\{(\w+):\?", SECURE.read_text()))
    assert secrets == {"KIBANA_SERVICE_TOKEN", "KIBANA_ENCRYPTION_KEY"}
    for name in secrets:
        others = dict.fromkeys(secrets - {name}, "a secret")
        with pytest.raises(StackError, match=rf"{name} is not set: run python tools/secure.py"):
            load_services((COMPOSE, KRAFT, SECURE), {**example, **others})


def test_both_scripts_have_the_same_defaults_and_document_them() -> None:
    now = datetime.now(UTC)
    ours, theirs = generator.load_config([], {}, now), indexer.load_config([], {})
    assert (ours.bootstrap_servers, ours.topic) == (theirs.bootstrap_servers, theirs.topic)
    for script in (generator, indexer):
        documented = dict(
            re.findall(r"^    ([A-Z_]+) +default (\S+)$", script.__doc__ or "", re.MULTILINE)
        )
        source = Path(script.__file__ or "").read_text()
        assert documented == dict(re.findall(r'"(KAFKA_\w+|ELASTICSEARCH_\w+)", "([^"]+)"', source))


def test_twins_in_the_two_scripts_are_equal() -> None:
    """The few lines that both need are written twice, so that each script stands alone."""

    def body(script: str, name: str) -> str:
        source = (PROJECT / script).read_text()
        source = source.replace('"CONSUMER"', '"GENERATOR"').replace("AdminClient", "Producer")
        found = re.search(rf"^(class|def) {name}\b.*?(?=^\S)", source, re.MULTILINE | re.DOTALL)
        assert found, name
        lines = found[0].splitlines()
        return "\n".join(
            line for line in lines if "elastic_transport" not in line and '"""' not in line
        )

    for name in ("Throttle", "configure_logging", "port_number", "servers", "speaks_tls", "login",
                 "kafka_security", "find_topic"):  # fmt: skip
        assert body("sensor_generator.py", name) == body("kafka_to_elasticsearch.py", name)


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
    assert camel["topics"] == generator.load_config([], {}, datetime.now(UTC)).topic
    assert confluent["topic.to.external.resource.mapping"] == f"{camel['topics']}:sensors_connect"
    assert "indexName=sensors_connect&" in camel["camel.sink.url"]


# The tree


def test_the_two_scripts_import_nothing_of_the_project() -> None:
    allowed = {
        "confluent_kafka",
        "dotenv",
        "elasticsearch",
        "kafka",
        "msgspec",
        "prometheus_client",
    }
    for script in ("sensor_generator.py", "kafka_to_elasticsearch.py"):
        imported = set(
            re.findall(r"^(?:from|import) (\w+)", (PROJECT / script).read_text(), re.MULTILINE)
        )
        standard = {name for name in imported if name in sys.stdlib_module_names}
        assert imported - standard <= allowed


def test_readme_names_only_files_that_are_there() -> None:
    named = re.findall(
        r"`([\w./-]+/|[\w./-]+\.(?:py|yml|json|txt|md|toml|example))`", README.read_text()
    )
    made = {".env", ".secure/"}
    missing = [name for name in set(named) - made if not (PROJECT / name).exists()]
    assert missing == []
