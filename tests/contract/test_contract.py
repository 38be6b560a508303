"""What several files must say alike: fields, variables, compose files, code of both scripts."""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints
from unittest.mock import patch

import jsonschema
import msgspec
import pytest
import yaml

import extensions.secure.__main__ as secure
import kafka_to_elasticsearch as indexer
import sensor_generator as generator
from extensions.secure import kafka_users
from stack.compose import StackError, load_services
from tests.conftest import PROJECT
from tests.documents import ON_OWN_SERVERS, ON_SHARED_SERVERS

MAPPING = json.loads((PROJECT / "mappings/sensors_data.json").read_text())
PROPERTIES: dict[str, Any] = MAPPING["mappings"]["properties"]
FIELDS = PROJECT / "docs/simulateur.md"
COMPOSE = PROJECT / "docker-compose.yml"
KRAFT, SECURE = PROJECT / "extensions/kraft/compose.yml", PROJECT / "extensions/secure/compose.yml"
OVERLAYS = sorted(PROJECT.glob("extensions/*/compose.yml"))
OF_PIPELINES = sorted(PROJECT.glob("pipelines/*/docker-compose.yml"))
COMPOSE_FILES = (COMPOSE, *OVERLAYS, *OF_PIPELINES)


def in_project(file: Path) -> str:
    """Return a file's path in the project, which names a test."""
    return str(file.relative_to(PROJECT))


ELASTIC_TYPES = {str: {"keyword", "date"}, float: {"float"}, int: {"integer"}}
SCHEMA = json.loads((PROJECT / "mappings/reading.v1.schema.json").read_text())


@cache
def generated(*argv: str) -> list[bytes]:
    """Return the lines that the generator prints."""
    command = [sys.executable, "sensor_generator.py", "--console", "--seed", "1", *argv]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, check=True).stdout.splitlines()


def generator_options(*argv: str) -> Any:
    """Return the generator's options, by default the default ones."""
    return generator.parse_options(generator.option_parser(""), argv)


def a_reading() -> dict[str, Any]:
    """Return a reading of the generator."""
    return dict(json.loads(generated("--backfill", "1m")[0]))


def field_table() -> dict[str, list[str]]:
    """Return the documented fields: name -> [JSON, Elasticsearch, unit, range]."""
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", FIELDS.read_text(), flags=re.MULTILINE)
    return {
        name: [cell.strip() for cell in cells.split("|")]
        for name, cells in rows
        if name in PROPERTIES
    }


# Fields


def test_generator_mapping_consumer_and_document_have_the_same_fields() -> None:
    reading = a_reading()
    assert list(reading) == list(PROPERTIES) == list(field_table())
    assert tuple(reading) == indexer.Reading.__struct_fields__


def test_types_agree() -> None:
    for name, value in a_reading().items():
        assert PROPERTIES[name]["type"] in ELASTIC_TYPES[type(value)], name
        assert field_table()[name][1] == f"`{PROPERTIES[name]['type']}`"
    for name, kind in get_type_hints(indexer.Reading).items():
        assert PROPERTIES[name]["type"] in ELASTIC_TYPES[kind]


def test_units_and_ranges_agree_with_the_document() -> None:
    schema = msgspec.json.schema(indexer.Reading)["$defs"]["Reading"]["properties"]
    measured = {name: found for name, found in schema.items() if found["type"] != "string"}
    assert len(measured) == 4
    for name, found in measured.items():
        low, high = found["minimum"], found["maximum"]
        unit, shown = field_table()[name][2:]
        assert unit == PROPERTIES[name]["meta"]["unit"]
        digits = re.sub(r"(?<=\d)\s(?=\d)", "", shown).replace("−", "-")
        assert [float(number) for number in digits.split(" à ")] == [low, high]


def test_the_consumer_and_the_schema_accept_what_the_generator_sends() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    values = generated("--backfill", "2h")
    assert len(values) > 1000
    for value in values:
        reading = json.loads(value)
        assert msgspec.structs.asdict(indexer.parse_reading(value)) == reading
        validator.validate(reading)


def test_the_schema_has_the_rules_of_the_consumer() -> None:
    checked = msgspec.json.schema(indexer.Reading)["$defs"]["Reading"]
    # The consumer checks this one outside its decoder.
    checked["properties"]["sensor_id"]["pattern"] = f"^{indexer.SENSOR_ID.pattern}$"
    rules = {
        name: {key: rule for key, rule in field.items() if key not in ("description", "format")}
        for name, field in SCHEMA["properties"].items()
    }
    assert rules == checked["properties"]
    assert SCHEMA["required"] == checked["required"] == list(PROPERTIES)
    assert SCHEMA["additionalProperties"] is checked["additionalProperties"] is False


def test_the_mapping_refuses_unknown_fields() -> None:
    assert MAPPING["mappings"]["dynamic"] == "strict"


# Variables


SCRIPTS = ("sensor_generator.py", "kafka_to_elasticsearch.py")
EXAMPLE = PROJECT / ".env.example"
# The folders with variables of their own, each with an .env.example of its own if it has any.
FOLDERS = sorted(
    file.parent
    for pattern in ("extensions/*/compose.yml", "pipelines/*/requirements.txt")
    for file in PROJECT.glob(pattern)
)


def variables(example: Path) -> dict[str, str]:
    """Return what an .env.example sets; nothing if there is none."""
    text = example.read_text() if example.exists() else ""
    return dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", text, flags=re.MULTILINE))


def all_variables() -> dict[str, str]:
    """Return what all .env.example files set."""
    examples = (EXAMPLE, *(folder / ".env.example" for folder in FOLDERS))
    return {name: value for example in examples for name, value in variables(example).items()}


def defaults(source: str) -> dict[str, str]:
    """Return the variables of a script's options with their defaults."""
    return dict(re.findall(r'"(KAFKA_\w+|ELASTICSEARCH_\w+)",\s+"([^"]+)"', source))


def interpolated(compose: Path) -> dict[str, str]:
    """Return the variables of a compose file that have a default there."""
    return dict(re.findall(r"\$\{(\w+):-([^}]*)\}", compose.read_text()))


def used_by_the_main_pipeline() -> dict[str, str]:
    """Return the variables of the two scripts, the main compose file, the stack and Kibana."""
    used = interpolated(COMPOSE)
    for script in SCRIPTS:
        used |= defaults((PROJECT / script).read_text())
    stack = "".join(file.read_text() for file in PROJECT.glob("stack/*.py"))
    used |= dict.fromkeys(re.findall(r'"(STACK_\w+|JAVA_HOME)"', stack), "")
    kibana = "".join(file.read_text() for file in PROJECT.glob("kibana/*.py"))
    used = dict.fromkeys(re.findall(r"\bKIBANA_[A-Z_]+", kibana), "") | used
    return used | dict(re.findall(r"^    (KIBANA_\w+) +default (http\S+)$", kibana, re.MULTILINE))


def used_in(folder: Path) -> dict[str, str]:
    """Return the variables of an extension or a pipeline, "" where they have no default."""
    (compose,) = folder.glob("*compose.yml")
    used = interpolated(compose)
    for file in folder.glob("**/*.py"):  # what each says of itself
        documented = file.read_text().partition('"""')[2].partition('"""')[0]
        used |= dict(re.findall(r"^    ([A-Z0-9_]+) +default (\S+)$", documented, re.MULTILINE))
        optional = re.findall(r"^    ([A-Z0-9_]+) +\S.*\(default: ", documented, re.MULTILINE)
        used |= {name: used.get(name, "") for name in optional}
    return used


def test_env_example_names_every_variable_of_the_main_pipeline_with_its_default() -> None:
    assert variables(EXAMPLE) == used_by_the_main_pipeline()


@pytest.mark.parametrize("folder", FOLDERS, ids=in_project)
def test_a_folder_s_env_example_names_its_other_variables_with_their_defaults(
    folder: Path,
) -> None:
    main, used = used_by_the_main_pipeline(), used_in(folder)
    example = variables(folder / ".env.example")
    if folder == SECURE.parent:
        settings = [*secure.settings({}), *secure.new_secrets()]
        used |= {name: "" for name in settings if name not in main}
        used |= {"COMPOSE_FILE": "docker-compose.yml", "CONSUMER_ELASTICSEARCH_API_KEY": ""}
    shared = used.keys() & main.keys()
    assert {name: used[name] for name in shared} == {name: main[name] for name in shared}
    if folder.parent.name != "pipelines":  # whose .env is the only one that Compose reads
        used = {name: default for name, default in used.items() if name not in main}
    assert example == used


def test_the_env_examples_agree() -> None:
    together = all_variables()
    for folder in FOLDERS:
        assert variables(folder / ".env.example").items() <= together.items()


def test_the_secure_variant_does_not_start_with_the_placeholders_of_env_example() -> None:
    example = all_variables()
    secrets = set(re.findall(r"\$\{(\w+):\?", SECURE.read_text()))
    assert secrets == {"KIBANA_SERVICE_TOKEN", "KIBANA_ENCRYPTION_KEY"}
    for name in secrets:
        others = dict.fromkeys(secrets - {name}, "a secret")
        with pytest.raises(
            StackError, match=rf"{name} is not set: run python -m extensions.secure"
        ):
            load_services((COMPOSE, KRAFT, SECURE), {**example, **others})


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_s_help_names_its_variables_with_their_defaults(script: str) -> None:
    environ = {**os.environ, "COLUMNS": "500"}
    command = [sys.executable, script, "--help"]
    shown = subprocess.run(
        command, cwd=PROJECT, env=environ, capture_output=True, text=True, check=True
    ).stdout
    named = defaults((PROJECT / script).read_text())
    assert named.keys() >= {"KAFKA_BOOTSTRAP_SERVERS", "KAFKA_TOPIC"}
    for name, default in named.items():
        assert re.search(rf"environment: {name}\W+default: {re.escape(default)}", shown)


def test_both_scripts_have_the_same_defaults() -> None:
    ours, theirs = generator_options(), indexer.parse_options([], {})
    for name in ("bootstrap_servers", "topic", "wait", "metrics_port"):
        assert getattr(ours, name) == getattr(theirs, name)


def is_accepted(kind: Callable[[str], object], text: str) -> bool:
    """Return whether an argparse type accepts a text."""
    try:
        kind(text)
    except argparse.ArgumentTypeError:
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "texts", "expected"),
    [
        ("topic_name", ["a", "a.b_c-D9", "x" * 237], True),
        ("topic_name", ["", " ", ".", "..", "a/b", "a b", "é", "a\n", "x" * 238], False),
        ("server_list", ["localhost:9092", "[::1]:9092", "a:1,b:65535"], True),
        (
            "server_list",
            ["", " ", "localhost", "a:", "a:b", "a:0", "a:65536", "a:1,", "::1:9"],
            False,
        ),
    ],
)
def test_both_scripts_accept_the_same_topics_and_servers(
    kind: str, texts: list[str], expected: bool
) -> None:
    for script in (generator, indexer):
        accepts = getattr(script, kind)
        assert [text for text in texts if is_accepted(accepts, text) is not expected] == []


def code_of(script: str, name: str) -> str:
    """Return the code of a function, without comments and without the prefix of argparse."""
    tree = ast.parse((PROJECT / script).read_text())
    found = next(node for node in tree.body if getattr(node, "name", "") == name)
    return ast.unparse(found).replace("argparse.", "")


@pytest.mark.parametrize("name", ["load_env", "stop_on_signals", "server_list", "number"])
def test_both_scripts_have_the_same_code_in_the_functions_they_share(name: str) -> None:
    """They import nothing from each other, so that a reader can copy one of them alone."""
    ours, theirs = (code_of(script, name) for script in SCRIPTS)
    assert ours == theirs


@pytest.mark.parametrize("name", ["server_list", "number", "text"])
def test_the_pipelines_check_values_as_the_scripts_do(name: str) -> None:
    """They do not import the scripts, which stand alone."""
    assert code_of("pipelines/common.py", name) == code_of(SCRIPTS[1], name)


def test_both_scripts_read_the_kafka_login_alike() -> None:
    """White space around a name or a password does not belong to it."""
    login = {"ROLE_KAFKA_USER": " me ", "ROLE_KAFKA_PASSWORD": "s3cr3t\n"}
    ours, theirs = (script.kafka_security(login, "ROLE") for script in (generator, indexer))
    assert ours.pop("ssl_context").verify_mode == theirs.pop("ssl_context").verify_mode
    assert ours == theirs
    assert (ours["sasl_plain_username"], ours["sasl_plain_password"]) == ("me", "s3cr3t")
    for script in (generator, indexer):
        with pytest.raises(script.SetupError, match="ROLE_KAFKA_PASSWORD: set both"):
            script.kafka_security({"ROLE_KAFKA_USER": "me"}, "ROLE")


# The tests below need only one script, because both have the same load_env.


@pytest.fixture
def load_env(tmp_path: Path) -> Callable[[bytes], dict[str, str]]:
    """Return a function that loads a .env of some content and returns the environment."""

    def load(content: bytes) -> dict[str, str]:
        (tmp_path / ".env").write_bytes(content)
        with patch.dict(os.environ, {"KAFKA_TOPIC": "real"}, clear=True):
            indexer.load_env(tmp_path / ".env")
            return dict(os.environ)

    return load


def test_env_is_read_and_the_real_environment_wins(
    load_env: Callable[[bytes], dict[str, str]],
) -> None:
    content = b"\xef\xbb\xbfA=first\r\n\r\n# a comment\r\nexport B='x y'\r\nKAFKA_TOPIC=file\r\n"
    expected = {"A": "first", "B": "x y", "KAFKA_TOPIC": "real", "C": "é #", "D": "", "E": "a${A}$"}
    assert load_env(content + 'C = "é #"\nD=\nE=a${A}$'.encode()) == expected


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
def test_a_wrong_line_of_env_is_refused_by_its_number_and_not_shown(
    line: bytes, load_env: Callable[[bytes], dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(indexer.SetupError) as refusal:
        load_env(b"A=a\n\n" + line + b"\nB=b\n")
    assert ".env, line 3: " in str(refusal.value)
    assert "s3cr3t" not in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert caplog.text == ""  # python-dotenv would log a second line


def test_an_env_may_be_absent_but_not_unreadable(tmp_path: Path) -> None:
    indexer.load_env(tmp_path / ".env")
    (tmp_path / ".env").mkdir()
    with pytest.raises(indexer.SetupError, match=r"\.env"):
        indexer.load_env(tmp_path / ".env")


# Compose


def without_resets(file: Path) -> str:
    """Return a compose file without its lines with !reset, a tag that plain YAML does not have."""
    return re.sub(r"^.*!reset null.*\n", "", file.read_text(), flags=re.MULTILINE)


def test_the_compose_files_are_valid_by_the_schema(tmp_path: Path) -> None:
    for file in COMPOSE_FILES:
        plain = tmp_path / in_project(file).replace("/", "-")
        plain.write_text(without_resets(file))
    command = [
        "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        *map(str, tmp_path.iterdir()),
    ]
    environ = {**os.environ, "PATH": f"{PROJECT}/.venv/bin:{os.environ['PATH']}"}
    checked = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert checked.returncode == 0, checked.stdout


def resolved(*files: Path) -> dict[str, Any]:
    """Return the files as Compose itself resolves them.

    Compose is compose-go, the library of docker compose, if COMPOSE_GO names its command (`go
    install github.com/compose-spec/compose-go/v2/cmd`); else docker compose; else the older
    docker-compose, which does not understand the overlays.
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
        pytest.skip("needs docker compose 2.24 or compose-go (COMPOSE_GO): neither is installed")
    raise AssertionError(f"Compose refuses the file, or is not installed: {printed}")


def environment(service: dict[str, Any]) -> dict[str, str]:
    """Return a service's variables, given as a mapping or as a list."""
    given = service.get("environment", {})
    pairs = given.items() if isinstance(given, dict) else (entry.split("=", 1) for entry in given)
    return {name: str(value) for name, value in pairs}


def published(port: dict[str, Any] | str) -> tuple[int, int]:
    """Return the container's port and the host's, from the form of either Compose."""
    if isinstance(port, dict):
        return int(port["target"]), int(port["published"])
    *_, host, inside = port.removesuffix("/tcp").split(":")
    return int(inside), int(host)


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """Return the folders and files that a service mounts: container's path -> host's path."""
    given = (
        dict(zip(("source", "target"), volume.split(":"), strict=False))
        if isinstance(volume, str)
        else volume
        for volume in service.get("volumes", [])
    )
    return {v["target"]: Path(v["source"]) for v in given if v["source"].startswith("/")}


@pytest.mark.parametrize(
    "files",
    [
        (COMPOSE,),
        (COMPOSE, KRAFT, SECURE),
        *((COMPOSE, overlay) for overlay in OVERLAYS if overlay != SECURE),
        *((file,) for file in OF_PIPELINES),
    ],
    ids=lambda files: in_project(files[-1]),
)
def test_the_native_stack_reads_the_files_as_compose_does(
    files: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = all_variables()
    copies = [tmp_path / f"{number}.yml" for number, _ in enumerate(files)]
    for file, copy in zip(files, copies, strict=True):  # compose-go reads no .env file
        required = re.compile(r"\$\{(\w+):\?[^}]*\}")
        copy.write_text(required.sub(lambda match: example[match[1]] or "x", file.read_text()))
    shutil.copytree(PROJECT / "extensions", tmp_path / "extensions")  # they mount files of it
    if files[0] in OF_PIPELINES:
        copies = list(files)  # nothing is required there
    monkeypatch.setenv("COMPOSE_PROFILES", "*")
    monkeypatch.delenv("ELASTICSEARCH_HEAP")  # tests/conftest.py sets it
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


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=in_project)
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


def test_every_server_of_the_secure_variant_has_tls() -> None:
    services = yaml.safe_load(without_resets(SECURE))["services"]
    assert set(services) == {"kafka", "elasticsearch", "kibana"}
    protocols = services["kafka"]["environment"]["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"]
    assert set(re.findall(r":(\w+)", protocols)) == {"SSL", "SASL_SSL"}
    assert services["elasticsearch"]["environment"]["xpack.security.http.ssl.enabled"] == "true"
    assert services["kibana"]["environment"]["SERVER_SSL_ENABLED"] == "true"


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=in_project)
def test_elasticsearch_creates_any_index_by_itself(file: Path) -> None:
    """The exercise indexes from a script of the reader before any index exists."""
    assert "auto_create_index" not in file.read_text()


def test_kibana_has_the_version_of_elasticsearch() -> None:
    services = load_services([COMPOSE], {"ELASTIC_VERSION": "8.19.99"})
    assert services["kibana"].tag == services["elasticsearch"].tag == "8.19.99"


# Kafka Connect

# The connector's own options that matter here (docs.confluent.io, "Configuration Reference for
# Elasticsearch Service Sink Connector", 16.0).
CONFLUENT_OPTIONS = {
    "batch.size", "behavior.on.malformed.documents", "behavior.on.null.values", "bulk.size.bytes",
    "connection.password", "connection.url", "connection.username", "drop.invalid.message",
    "external.resource.usage", "flush.synchronously", "flush.timeout.ms", "key.ignore", "linger.ms",
    "max.in.flight.requests", "max.retries", "read.timeout.ms", "retry.backoff.ms", "schema.ignore",
    "topic.to.external.resource.mapping", "write.method",
}  # fmt: skip
# Options of every sink (kafka.apache.org/39, "Sink Connector Configs").
SINK_OPTIONS = {
    "connector.class", "errors.deadletterqueue.context.headers.enable",
    "errors.deadletterqueue.topic.name", "errors.deadletterqueue.topic.replication.factor",
    "errors.log.enable", "errors.tolerance", "key.converter", "tasks.max", "topics", "transforms",
    "value.converter", "value.converter.schemas.enable",
}  # fmt: skip


def test_the_two_connectors_have_documented_options_and_agree() -> None:
    """The worker in tests/integration/test_connect.py checks Camel's own options."""
    camel, confluent = (
        json.loads((PROJECT / f"extensions/connect/{name}.json").read_text())
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


# The table of faults


def names_of_tests(*files: str) -> set[str]:
    """Return the names of the tests in these files of tests/."""
    texts = ((PROJECT / "tests" / file).read_text() for file in files)
    return {name for text in texts for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}


def test_the_table_of_faults_names_every_test_and_no_other() -> None:
    named = set(re.findall(r"`(test_\w+)`", (PROJECT / "tests/faults/README.md").read_text()))
    faults = names_of_tests("faults/test_faults.py", "faults/test_cluster.py") - {"test_soak"}
    assert faults <= named <= faults | names_of_tests("acceptance/test_pipeline.py")


# The scripts' libraries


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
def test_a_script_imports_exactly_these_libraries(script: str, allowed: set[str]) -> None:
    pattern = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
    imported = set(pattern.findall((PROJECT / script).read_text()))
    assert imported - sys.stdlib_module_names == allowed


@pytest.mark.parametrize("document", [*ON_SHARED_SERVERS, *ON_OWN_SERVERS])
def test_a_document_names_only_files_that_are_there(document: str) -> None:
    file = PROJECT / document
    named = re.findall(
        r"`([\w./-]+/|[\w./-]+\.(?:py|yml|json|txt|md|toml|example))`", file.read_text()
    )
    made = {".env", ".secure/"}
    places = (PROJECT, file.parent)
    missing = [n for n in set(named) - made if not any((place / n).exists() for place in places)]
    assert missing == []


def test_the_dead_letter_topic_of_the_secure_variant_takes_as_large_messages() -> None:
    assert kafka_users.DEAD_LETTER_BYTES == indexer.DEAD_LETTER_BYTES
