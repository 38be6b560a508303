"""The secure variant on the real servers, in a copy of the project, by its README's commands."""

import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values
from elasticsearch import ApiError, AuthorizationException, Elasticsearch
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import AuthorizationError, ClusterAuthorizationFailedError, KafkaError
from kafka.structs import TopicPartition

from extensions.secure import __main__ as secure
from extensions.secure import scram
from extensions.secure.certificates import Authority
from extensions.secure.file_realm import password_variable, service_token
from extensions.secure.kafka_users import KAFKA_USERS, acls
from pipelines.tests.waiting import wait_until
from stack.lifecycle import Stack
from stack.servers import free_port, unprivileged_folder
from tests.conftest import PROJECT, program
from tests.documents import blocks, commands, skeleton, write_docker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("secure")]

TOPIC, GROUP, INDEX = "smart-city-sensors", "smart-city-indexer", "sensors_data"
NOT_COPIED = shutil.ignore_patterns(
    ".*", "__pycache__", "tests", "pipelines", "screenshots", "docs"
)


class Clone:
    """A copy of the project whose .env says nothing yet but free ports, and what it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(PROJECT, folder, ignore=NOT_COPIED)
        names = ("KAFKA", "KAFKA_ADMIN", "ELASTICSEARCH", "KIBANA")
        ports = {f"{name}_HOST_PORT": free_port() for name in names}
        self.kafka = f"localhost:{ports['KAFKA_HOST_PORT']}"
        lines = [*(f"{name}={port}" for name, port in ports.items())]
        (folder / ".env").write_text(
            "\n".join([*lines, f"KAFKA_BOOTSTRAP_SERVERS={self.kafka}", ""])
        )
        self.environ = {n: v for n, v in os.environ.items() if n != "PYTHON_DOTENV_DISABLED"}
        self.environ["DOCKER_HOST"] = "tcp://127.0.0.1:9"  # no engine: natively
        self.started: list[subprocess.Popen[bytes]] = []
        self.made = ""  # what `make secure` has printed

    @property
    def env(self) -> dict[str, str]:
        """What .env says."""
        return {n: v for n, v in dotenv_values(self.folder / ".env").items() if v}

    @property
    def secrets(self) -> list[str]:
        names = re.compile("PASSWORD|TOKEN|ENCRYPTION_KEY|API_KEY")
        return [value for name, value in self.env.items() if names.search(name)]

    def assert_no_secret(self, text: str) -> None:
        found = [secret for secret in self.secrets if secret in text]
        assert not found, f"{len(found)} secrets are shown"

    def run(
        self, *command: str, code: Collection[int] = (0,), environ: Mapping[str, str] | None = None
    ) -> tuple[str, str]:
        """Run a script to its end; return stdout and stderr, which show no secret and no trace."""
        done = subprocess.run(
            [sys.executable, *program(command[0]), *command[1:]],
            cwd=self.folder,
            env={**self.environ, **(environ or {})},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode in code, done.stderr
        assert "Traceback" not in done.stderr
        self.assert_no_secret(done.stdout + done.stderr)
        return done.stdout, done.stderr

    def shell(self, command: str) -> str:
        """Run a line of README; return what it wrote to stdout, which shows no secret."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={**self.environ, "PATH": f".venv/bin:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self.assert_no_secret(done.stdout + done.stderr)
        return done.stdout

    def refused(self, *command: str, environ: Mapping[str, str]) -> str:
        """Run what must end soon, in one line and with code 1 or 2; return the line."""
        _, err = self.run(*command, code=(1, 2), environ=environ)
        said = [line for line in err.splitlines() if not re.search(" INFO |: waiting for ", line)]
        assert len(said) == 1, err
        return said[0]

    def start(self, script: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log(script).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *program(script), *arguments],
                cwd=self.folder,
                env=self.environ,
                stdout=log,
                stderr=log,
            )
        self.started.append(process)
        return process

    def log(self, script: str) -> Path:
        """Where a script that was started writes."""
        return self.folder / f"{script}.log"

    def end(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, self.log("kafka_to_elasticsearch.py").read_text()

    def clients(self, role: str) -> dict[str, Any]:
        """Return the options of kafka-python for a user."""
        return {
            "bootstrap_servers": self.kafka,
            "api_version_auto_timeout_ms": 10_000,
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "ssl_context": ssl.create_default_context(cafile=self.folder / ".secure/ca.pem"),
            "sasl_plain_username": role,
            "sasl_plain_password": self.env[f"{role.upper()}_KAFKA_PASSWORD"],
        }

    def kafka_admin(self) -> KafkaAdminClient:
        context = ssl.create_default_context(cafile=self.folder / ".secure/ca.pem")
        context.load_cert_chain(self.folder / ".secure/admin.pem")
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # see stack.native.kafka.tls_options
        return KafkaAdminClient(
            bootstrap_servers=f"127.0.0.1:{self.env['KAFKA_ADMIN_HOST_PORT']}",
            security_protocol="SSL",
            ssl_context=context,
        )

    def elasticsearch(self, role: str) -> Elasticsearch:
        return Elasticsearch(
            self.env["ELASTICSEARCH_URL"],
            ca_certs=str(self.folder / ".secure/ca.pem"),
            basic_auth=(role, self.env[password_variable(role)]),
            request_timeout=60,
        )

    def indexed(self) -> int:
        """Return how many readings are in the index."""
        with self.elasticsearch("verifier") as client:
            client.indices.refresh(index=INDEX)
            return int(client.count(index=INDEX)["count"])


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    folder = tmp_path_factory.mktemp("secure") / "city"
    clone = Clone(folder)
    (folder / ".venv").symlink_to(sys.prefix)
    for file in folder.glob("requirements*.txt"):  # `make` takes it for filled
        os.utime(file, (0, 0))
    try:
        clone.made = clone.shell("make secure")
        yield clone
    finally:
        for process in clone.started:
            process.kill()
            process.wait()
        clone.run("stack", "down", "-v")


@pytest.fixture(scope="module")
def filled(clone: Clone) -> Clone:
    """The same with readings, good and bad, that have gone all the way."""
    assert len(clone.secrets) >= 10  # else no test that none is shown would say anything
    ledger = ("--ledger", "ledger.csv")
    faults = ("--fault", "malformed=0.05", "--fault", "duplicate=0.05")
    options = ("--count", "3000", "--backfill", "12h", *faults, *ledger)
    clone.run("tools.faulty_sensors", *options)
    clone.run("kafka_to_elasticsearch.py", "--exit-when-idle", "3")
    return clone


# It works


def test_the_whole_pipeline_works(filled: Clone) -> None:
    out, _ = filled.run("tools.verify", "--ledger", "ledger.csv")
    assert re.search(r"^messages in smart-city-sensors +3000$", out, re.MULTILINE)
    assert re.search(r"^missing +0$", out, re.MULTILINE)
    (dead,) = re.findall(r"^dead-lettered +(\d+)$", out, re.MULTILINE)
    assert int(dead) > 50
    listed, _ = filled.run("tools.dead_letters", "list", "--last", "1")
    assert re.search(rf"^ *{dead}  pending", listed, re.MULTILINE)
    replayed, _ = filled.run("tools.dead_letters", "replay")
    assert f"still_invalid={dead} " in replayed
    sizes, _ = filled.run("tools.sizing")
    assert re.search(r"^a message in smart-city-sensors .* measured on 3,", sizes, re.MULTILINE)
    filled.run("tools.preview")
    assert (filled.folder / "apercu/index.html").exists()


def test_the_job_on_spark_logs_in_as_the_script_does(filled: Clone) -> None:
    """All of it is there already: what Spark reads, with TLS and a password, changes nothing."""
    before = filled.indexed()
    submit = next(c for c in commands("extensions/spark/README.md") if c.startswith("spark-submit"))
    log = filled.shell(f"{submit} 2>&1")  # which shows no secret
    assert re.search(r"stopped consumed=3000 indexed=0 duplicates=\d{4} dead_lettered=", log)
    assert filled.indexed() == before
    filled.run("tools.verify", "--ledger", "ledger.csv")


def test_kibana_is_known_by_its_service_token(clone: Clone) -> None:
    token = clone.env["KIBANA_SERVICE_TOKEN"]
    url, authority = clone.env["ELASTICSEARCH_URL"], str(clone.folder / ".secure/ca.pem")
    with Elasticsearch(url, ca_certs=authority, bearer_auth=token) as client:
        assert client.security.authenticate()["username"] == "elastic/kibana"
    forged = service_token("a secret of somebody else's")
    with (
        Elasticsearch(url, ca_certs=authority, bearer_auth=forged) as client,
        pytest.raises(ApiError) as refusal,
    ):
        client.security.authenticate()
    assert refusal.value.status_code == 401


def test_running_both_commands_again_changes_nothing(filled: Clone) -> None:
    before = {f: f.read_bytes() for f in filled.folder.glob(".secure/**/*.pem")}
    env = (filled.folder / ".env").read_text()
    filled.run("extensions.secure", "files")
    filled.run("extensions.secure", "users")
    assert {f: f.read_bytes() for f in filled.folder.glob(".secure/**/*.pem")} == before
    assert (filled.folder / ".env").read_text() == env
    filled.run("tools.verify")


def test_readme_s_commands_work_and_print_what_it_shows(filled: Clone) -> None:
    texts = (text.splitlines() for _, text in blocks("extensions/secure/README.md"))
    at_once, shown, step_by_step, asked = texts
    assert at_once == ["make secure"]  # run by the fixture
    printed = [skeleton(line) for line in filled.made.splitlines()]
    assert [line for line in map(skeleton, shown) if line not in printed] == ["..."]
    write_docker(filled.folder / "bin")
    for command in step_by_step:  # everything is there already
        filled.shell(f"PATH=bin:$PATH; {command}")
    rights, request = asked
    given = re.findall(
        r"User:generator, .*operation=(\w+), permission\w+=(\w+)", filled.shell(rights)
    )
    assert given == [("WRITE", "ALLOW")]
    password = filled.env["ADMIN_ELASTICSEARCH_PASSWORD"]
    request = request.replace("https://localhost:9200", filled.env["ELASTICSEARCH_URL"])
    request = request.replace("-u admin", f"-K - <<<'user = admin:{password}'")  # it would be asked
    assert INDEX in filled.shell(f"{request} --fail")


# Who may not: Kafka


def sent(clone: Clone, user: str, topic: str) -> None:
    with closing(KafkaProducer(**clone.clients(user), max_block_ms=10_000)) as producer:
        producer.send(topic, b"{}").get(timeout=30)


def polled(clone: Clone, user: str, topic: str, group: str | None = None) -> int:
    options = {"group_id": group, "auto_offset_reset": "earliest", "enable_auto_commit": False}
    with closing(KafkaConsumer(**clone.clients(user), **options)) as consumer:
        if group:
            consumer.subscribe([topic])
        else:
            consumer.assign([TopicPartition(topic, number) for number in range(3)])
        return int(wait_until(lambda: len(consumer.poll(500)), "something can be read", 30))


def test_each_reads_what_it_may(filled: Clone) -> None:
    """So that a refusal below is one of the right, not of something else."""
    assert polled(filled, "verifier", TOPIC)
    assert polled(filled, "verifier", f"{TOPIC}.dead-letter")


@pytest.mark.parametrize(
    ("user", "topic"),
    [
        ("generator", "another-topic"),
        ("generator", f"{TOPIC}.dead-letter"),
        ("consumer", TOPIC),
        ("consumer", "another-topic"),
        ("verifier", TOPIC),
        ("verifier", f"{TOPIC}.dead-letter"),
        ("replayer", "another-topic"),
    ],
)
def test_kafka_lets_nobody_write_elsewhere(clone: Clone, user: str, topic: str) -> None:
    with pytest.raises(KafkaError, match="AuthorizationFailed"):
        sent(clone, user, topic)
    with closing(clone.kafka_admin()) as admin:
        assert "another-topic" not in admin.list_topics()


@pytest.mark.parametrize(
    ("user", "topic", "group"),
    [
        ("generator", TOPIC, None),
        ("generator", TOPIC, GROUP),
        ("consumer", f"{TOPIC}.dead-letter", None),
        ("consumer", TOPIC, "another-group"),
        ("replayer", TOPIC, None),
        ("verifier", TOPIC, GROUP),
    ],
)
def test_kafka_lets_nobody_read_elsewhere(
    filled: Clone, user: str, topic: str, group: str | None
) -> None:
    with pytest.raises(AuthorizationError):
        polled(filled, user, topic, group)


@pytest.mark.parametrize("user", KAFKA_USERS)
def test_no_user_of_kafka_can_give_itself_rights_or_delete(clone: Clone, user: str) -> None:
    with closing(KafkaAdminClient(**clone.clients(user))) as admin:
        wanted = acls({})
        assert admin.create_acls(wanted)["failed"] == (
            [(acl, ClusterAuthorizationFailedError) for acl in wanted]
        )
        with pytest.raises(ClusterAuthorizationFailedError):
            scram.set_passwords(admin, {"consumer": "one of my own"})
        with pytest.raises(AuthorizationError):
            admin.delete_topics([TOPIC])
    with closing(clone.kafka_admin()) as admin:
        assert TOPIC in admin.list_topics()
    with closing(KafkaAdminClient(**clone.clients("consumer"))) as consumer:  # as before
        assert consumer.list_topics()


def test_each_sees_only_its_topics(clone: Clone) -> None:
    for user, topics in {"generator": [TOPIC], "verifier": [TOPIC, f"{TOPIC}.dead-letter"]}.items():
        with closing(KafkaAdminClient(**clone.clients(user))) as admin:
            assert sorted(admin.list_topics()) == topics


def test_the_administrator_s_door_takes_no_password(clone: Clone) -> None:
    options = clone.clients("generator") | {"api_version_auto_timeout_ms": 3000}
    options["bootstrap_servers"] = f"127.0.0.1:{clone.env['KAFKA_ADMIN_HOST_PORT']}"
    with pytest.raises((KafkaError, ssl.SSLError)):
        KafkaAdminClient(**options)
    with pytest.raises((KafkaError, ssl.SSLError)):  # nor somebody without a certificate
        KafkaAdminClient(**options | {"security_protocol": "SSL"})


# Who may not: Elasticsearch

SETTING = {"cluster.max_shards_per_node": 1000}
ACTIONS: dict[str, Callable[[Elasticsearch], Any]] = {
    "read another index": lambda client: client.search(index="private"),
    "write to another index": lambda client: client.create(index="private", id="1", document={}),
    "make another index": lambda client: client.indices.create(index="other"),
    "delete its index": lambda client: client.indices.delete(index=INDEX),
    "change a document": lambda client: client.index(index=INDEX, id="1", document={}),
    "delete a document": lambda client: client.delete(index=INDEX, id="1"),
    "change the mapping": lambda client: client.indices.put_mapping(index=INDEX, properties={}),
    "see the users": lambda client: client.security.get_user(),
    "change the cluster": lambda client: client.cluster.put_settings(persistent=SETTING),
}


@pytest.fixture(scope="module")
def private(filled: Clone) -> Clone:
    """With an index of somebody else's, and a document to change."""
    with filled.elasticsearch("admin") as admin:
        admin.index(index="private", id="0", document={"secret": True}, refresh=True)
    return filled


@pytest.mark.parametrize(
    ("user", "action"),
    [
        (user, action)
        for user in ("consumer", "verifier", "dashboards")
        for action in ACTIONS
        # Version 8 still lets who may write add fields: see extensions/secure.
        if (user, action) != ("consumer", "change the mapping")
    ],
)
def test_elasticsearch_lets_nobody_do_more(private: Clone, user: str, action: str) -> None:
    with private.elasticsearch(user) as client:
        assert client.count(index=INDEX)["count"] > 0  # what it may
        with pytest.raises(AuthorizationException):
            ACTIONS[action](client)


def test_the_verifier_writes_nothing(private: Clone) -> None:
    with private.elasticsearch("verifier") as client, pytest.raises(AuthorizationException):
        client.create(index=INDEX, id="1", document={})


# Who does not come in

GENERATOR = ("sensor_generator.py", "--count", "1", "--wait", "3")
CONSUMER = ("kafka_to_elasticsearch.py", "--exit-when-idle", "1", "--wait", "3")
PLAIN = {
    name: ""
    for name in (
        "KAFKA_CA_FILE",
        *(
            f"{role}_KAFKA_{what}"
            for role in ("GENERATOR", "CONSUMER")
            for what in ("USER", "PASSWORD")
        ),
    )
}
WRONG_PASSWORD = "SaslAuthenticationFailed.*invalid credentials"  # noqa: S105  # an error's words
# What a plain client hears of a broker that speaks TLS depends on how far it comes.
SPEAKS_TLS = "Invalid frame length|socket disconnected|determine broker version"


@pytest.mark.parametrize(
    ("command", "environ", "told"),
    [
        (GENERATOR, {"GENERATOR_KAFKA_PASSWORD": "wrong"}, WRONG_PASSWORD),
        (GENERATOR, {"GENERATOR_KAFKA_USER": "nobody"}, WRONG_PASSWORD),
        (GENERATOR, {"KAFKA_CA_FILE": "other.pem"}, "CERTIFICATE_VERIFY_FAILED"),
        (GENERATOR, PLAIN, SPEAKS_TLS),
        (GENERATOR, {"KAFKA_TOPIC": "another-topic"}, "refuses: .*another-topic is not authorized"),
        (CONSUMER, {"CONSUMER_KAFKA_PASSWORD": "wrong"}, WRONG_PASSWORD),
        (CONSUMER, {"KAFKA_CA_FILE": "other.pem"}, "CERTIFICATE_VERIFY_FAILED"),
        (CONSUMER, PLAIN, SPEAKS_TLS),
        (CONSUMER, {"KAFKA_TOPIC": "another-topic"}, "refuses: Authorization failed"),
        (
            CONSUMER,
            {"CONSUMER_ELASTICSEARCH_PASSWORD": "wrong"},
            r"unable to authenticate user \[consumer\]",
        ),
        (CONSUMER, {"CONSUMER_ELASTICSEARCH_API_KEY": "d3Jvbmc6d3Jvbmc="}, "refuses"),
        (CONSUMER, {"ELASTICSEARCH_CA_FILE": "other.pem"}, "CERTIFICATE_VERIFY_FAILED"),
        (CONSUMER, {"ELASTICSEARCH_INDEX": "private"}, r"refuses: AuthorizationException\(403"),
    ],
)
def test_a_wrong_start_is_one_line_in_the_server_s_own_words(
    private: Clone, command: tuple[str, ...], environ: dict[str, str], told: str
) -> None:
    (private.folder / "other.pem").write_bytes(Authority().pem)
    line = private.refused(*command, environ=environ)
    assert re.search(told, line), line
    assert private.kafka in line or "Elasticsearch at https://localhost:" in line


def test_a_plain_connection_to_elasticsearch_is_one_line(clone: Clone) -> None:
    url = clone.env["ELASTICSEARCH_URL"].replace("https", "http")
    line = clone.refused(*CONSUMER, environ={"ELASTICSEARCH_URL": url})
    assert f"Elasticsearch at {url}" in line


def test_servers_without_tls_are_waited_for_and_it_is_said_why(clone: Clone, stack: Stack) -> None:
    """They may be the ones of before, about to be replaced."""
    kafka = {"KAFKA_BOOTSTRAP_SERVERS": stack.servers["kafka"].address}
    for command in (GENERATOR, CONSUMER):
        line = clone.refused(*command, environ=kafka)
        assert "SSL connection closed by server during handshake" in line
    environ = {"ELASTICSEARCH_URL": f"https://{stack.servers['elasticsearch'].address}"}
    line = clone.refused(*CONSUMER, environ=environ)
    assert "SSL: WRONG_VERSION_NUMBER" in line  # so it speaks none


@pytest.mark.parametrize(
    ("command", "environ", "told"),
    [
        (
            ["tools.verify"],
            {"VERIFIER_KAFKA_PASSWORD": "wrong"},
            f"as VERIFIER: .*{WRONG_PASSWORD}",
        ),
        (["tools.verify"], {"VERIFIER_KAFKA_USER": "nobody"}, WRONG_PASSWORD),
        (["tools.verify"], {"KAFKA_CA_FILE": "other.pem"}, "CERTIFICATE_VERIFY_FAILED"),
        (["tools.verify"], {"KAFKA_TOPIC": "another-topic"}, "no topic another-topic, or none"),
        (
            ["tools.verify"],
            {"VERIFIER_ELASTICSEARCH_PASSWORD": "wrong"},
            r"as VERIFIER: .*unable to authenticate user \[verifier\]",
        ),
        (
            ["tools.dead_letters", "list"],
            {"REPLAYER_KAFKA_PASSWORD": "wrong"},
            f"as REPLAYER: .*{WRONG_PASSWORD}",
        ),
        (["tools.sizing"], {"VERIFIER_KAFKA_PASSWORD": "wrong"}, WRONG_PASSWORD),
        (
            ["extensions.secure", "users"],
            {"KAFKA_ADMIN_HOST_PORT": "1"},
            r"is the secure variant started\? \(make secure\)",
        ),
    ],
)
def test_the_tools_say_what_is_wrong(
    clone: Clone, command: list[str], environ: dict[str, str], told: str
) -> None:
    (clone.folder / "other.pem").write_bytes(Authority().pem)
    line = clone.refused(*command, environ=environ)
    assert re.search(told, line), line


def test_a_start_with_placeholders_is_one_line(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "city")
    shutil.copy(PROJECT / "extensions/secure/.env.example", clone.folder / ".env")
    environ = {"COMPOSE_FILE": secure.settings({})["COMPOSE_FILE"]}
    line = clone.refused("stack", "up", environ=environ)
    assert re.fullmatch(r"stack: \w+ is not set: run python -m extensions.secure files", line)
    environ |= {"KIBANA_SERVICE_TOKEN": "x", "KIBANA_ENCRYPTION_KEY": "x"}
    line = clone.refused("stack", "up", "kafka", environ=environ)
    assert "kafka needs" in line
    assert "(`python -m extensions.secure files` makes the files of .secure)" in line


# In mid-run


@pytest.fixture
def running(filled: Clone) -> Iterator[Clone]:
    """With a load that the consumer follows."""
    for script in ("sensor_generator.py", "kafka_to_elasticsearch.py"):
        filled.log(script).unlink(missing_ok=True)
    before = filled.indexed()
    generator = filled.start("sensor_generator.py", "--rate", "200")
    consumer = filled.start("kafka_to_elasticsearch.py")
    wait_until(lambda: filled.indexed() > before, "readings are indexed", 120)
    yield filled
    filled.end(generator)
    found = re.findall(r"stopped sent=(\d+)", filled.log("sensor_generator.py").read_text())
    due = before + int(found[-1])
    wait_until(lambda: filled.indexed() == due, f"{due} readings are indexed", 120)
    filled.end(consumer)
    log = filled.log("kafka_to_elasticsearch.py").read_text()
    assert "Traceback" not in log
    filled.assert_no_secret(log)
    out, _ = filled.run("tools.verify")
    assert re.search(r"^missing +0$", out, re.MULTILINE)


def replace_text(file: Path, text: str) -> None:
    """Replace a file at once: Elasticsearch must not read it while it is half written."""
    new = file.with_name("new")
    shutil.copy2(file, new)
    shutil.chown(new, file.stat().st_uid, file.stat().st_gid)
    new.write_text(text)
    new.replace(file)


def test_a_user_of_elasticsearch_withdrawn_in_mid_run_is_waited_for(running: Clone) -> None:
    realm = unprivileged_folder(running.folder / ".stack") / "elasticsearch/config/users"
    users = realm.read_text()
    others = [user for user in users.splitlines(True) if not user.startswith("consumer:")]
    replace_text(realm, "".join(others))
    log = running.log("kafka_to_elasticsearch.py")
    loud = r"ERROR .*messages wait \(.*unable to authenticate user \[consumer\].*next try"
    wait_until(lambda: re.search(loud, log.read_text()), "the refusal is said, loudly", 120)
    before = running.indexed()
    wait_until(lambda: len(re.findall(loud, log.read_text())) > 2, "it goes on waiting", 120)
    assert running.indexed() == before
    replace_text(realm, users)
    wait_until(lambda: running.indexed() > before, "it goes on", 120)


def test_a_right_in_kafka_withdrawn_in_mid_run_is_waited_for(running: Clone) -> None:
    rights = [acl for acl in acls({}) if acl.principal == "User:consumer"]
    log = running.log("kafka_to_elasticsearch.py")
    with closing(running.kafka_admin()) as admin:
        admin.delete_acls(rights)
        try:
            told = "WARNING .*AuthorizationFailed"
            wait_until(lambda: re.search(told, log.read_text()), "the refusal is said", 120)
            before = running.indexed()
        finally:
            admin.create_acls(rights)
    wait_until(lambda: running.indexed() > before + 500, "it goes on", 120)


# Last: nothing of all this has left a secret behind


def test_no_secret_is_in_a_log_or_on_a_command_line(filled: Clone) -> None:
    state = filled.folder / ".stack"
    folders = (state / "logs", state / "config", unprivileged_folder(state) / "elasticsearch/logs")
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert {"kafka.log", "elasticsearch.log", "kafka.properties"} <= {file.name for file in files}
    for file in [*files, *filled.folder.glob("*.log")]:
        filled.assert_no_secret(file.read_text(errors="replace"))
    log = filled.log("kafka_to_elasticsearch.py")
    log.unlink(missing_ok=True)
    consumer = filled.start("kafka_to_elasticsearch.py")
    wait_until(lambda: "assigned partitions" in log.read_text(), "it has begun")
    lines = [
        file.read_bytes().decode(errors="replace")
        for file in Path("/proc").glob("[0-9]*/cmdline")
        if file.exists()
    ]
    assert any("kafka.properties" in line and str(state) in line for line in lines)
    filled.assert_no_secret("\n".join(lines))
    filled.end(consumer)
