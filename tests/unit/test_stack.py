"""The native stack: reading compose files, moving addresses, messages for the user."""

import ast
import os
import runpy
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from extensions.secure.certificates import Authority
from stack import prerequisites
from stack.__main__ import main
from stack.compose import Service, StackError, load_services
from stack.env_file import read_env_file, read_environment
from stack.lifecycle import Stack
from stack.native import cassandra, hdfs
from stack.native.s3 import MINIO_VERSION
from stack.servers import Site, answers, free_port, java_home, run
from tools import check_images

PROJECT = Path(__file__).resolve().parents[2]
COMPOSE = PROJECT / "docker-compose.yml"
MONITORING = PROJECT / "extensions/monitoring/compose.yml"
CASSANDRA = PROJECT / "pipelines/iot_cassandra/docker-compose.yml"


def services_of(tmp_path: Path, *texts: str) -> list[Service]:
    files = []
    for number, text in enumerate(texts):
        files.append(tmp_path / f"{number}.yml")
        files[-1].write_text(text)
    return list(load_services(files, {}).values())


BASE = """
services:
  b: {image: "x/y:1", depends_on: {a: {condition: service_healthy}}, environment: {K: 1, L: yes}}
  a: {image: "z:2"}
"""


def test_services_come_in_start_order(tmp_path: Path) -> None:
    assert [service.name for service in services_of(tmp_path, BASE)] == ["a", "b"]


def test_an_overlay_merges_resets_and_overrides(tmp_path: Path) -> None:
    overlay = """
services:
  a: !reset null
  b: {depends_on: !reset null, environment: !override {M: 2}}
"""
    (only,) = services_of(tmp_path, BASE, overlay)
    assert (only.name, only.environment, only.depends_on) == ("b", {"M": "2"}, [])
    overlay = "services: {b: {environment: {K: 3, N: 4}}}"
    merged = services_of(tmp_path, BASE, overlay)[1]
    assert merged.environment == {"K": "3", "L": "true", "N": "4"}


def test_a_missing_or_broken_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"cannot read .*absent.yml: No such file"):
        load_services([tmp_path / "absent.yml"], {})
    (tmp_path / "broken.yml").write_text("services: [")
    with pytest.raises(StackError, match=r"broken.yml is not valid YAML") as refusal:
        load_services([tmp_path / "broken.yml"], {})
    assert "\n" not in str(refusal.value)
    for text in (
        "",
        "services: [a]",
        "services: {a: {build: .}}",
        'services: {a: {image: "b:1", environment: [C=1]}}',
        'services: {a: {image: "b:1", volumes: [{type: bind, source: ., target: /c}]}}',
        'services: {a: {image: "b:1", depends_on: [a]}}',
        "services: {a: é}",
    ):
        (tmp_path / "other.yml").write_text(text, "latin-1")
        with pytest.raises(
            StackError, match=r"other.yml: a form that is not understood"
        ) as refusal:
            load_services([COMPOSE, tmp_path / "other.yml"], {})
        assert "\n" not in str(refusal.value)


def test_a_port_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(StackError, match="'many' is not a port"):
        load_services([COMPOSE], {"KAFKA_HOST_PORT": "many"})


def test_addresses_move_to_loopback(tmp_path: Path) -> None:
    services = load_services([COMPOSE], {"KAFKA_HOST_PORT": "19092"})
    site = Site(services, tmp_path, tmp_path, {})
    inside = site.host_port("kafka", 29092)
    text = "INTERNAL://kafka:29092,HOST://kafka:9092 zookeeper:2181 akafka:1 127.0.0.1:9"
    moved = (
        f"INTERNAL://127.0.0.1:{inside},HOST://127.0.0.1:19092 127.0.0.1:2181 akafka:1 127.0.0.1:9"
    )
    assert site.on_host(text) == moved
    listeners = text.replace("//kafka:", "//0.0.0.0:")
    assert site.listeners_on_host(services["kafka"], listeners) == moved
    assert site.listeners_on_host(services["kafka"], "10.0.0.0:9092") == "10.0.0.0:9092"
    again = Site(services, tmp_path, tmp_path, {})
    assert again.host_port("kafka", 29092) == inside


def test_an_unknown_version_is_one_line(tmp_path: Path) -> None:
    environ = {**os.environ, "STACK_STATE": str(tmp_path), "CONFLUENT_VERSION": "8.0.0"}
    with pytest.raises(StackError, match=r"8\.0\.0 is not known .* change CONFLUENT_VERSION"):
        Stack([COMPOSE], environ)


def test_a_missing_java_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StackError, match=r"Java is not installed: .*apt-get install openjdk-17"):
        java_home({})
    with pytest.raises(StackError, match=r"JAVA_HOME=/nowhere has no bin/java"):
        java_home({"JAVA_HOME": "/nowhere"})


def test_a_missing_maven_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = java_home(os.environ)
    monkeypatch.setenv("PATH", "/nowhere")
    environ = {
        "STACK_CACHE": str(tmp_path / "cache"),
        "STACK_STATE": str(tmp_path),
        "JAVA_HOME": str(home),
        "ZOOKEEPER_HOST_PORT": str(free_port()),  # that of README may be in use
    }
    with pytest.raises(
        StackError, match=r"Maven \(mvn\) is not installed: .*apt-get install maven"
    ):
        Stack([COMPOSE], environ).up(["zookeeper"])


MAVEN = """#!/bin/sh
echo called >> "$MAVEN_CALLS"
sleep 0.5
for argument; do case $argument in -DoutputDirectory=*) mkdir -p "${argument#*=}";; esac; done
"""


def test_two_stacks_at_once_fetch_a_server_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mvn").write_text(MAVEN)
    (tmp_path / "mvn").chmod(0o755)
    calls = tmp_path / "calls"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("MAVEN_CALLS", str(calls))
    site = Site({}, tmp_path, tmp_path / "cache", {})
    with ThreadPoolExecutor() as threads:
        folders = list(threads.map(lambda _: site.from_maven("kafka", "1"), range(2)))
    assert folders == [tmp_path / "cache/kafka-1"] * 2
    assert calls.read_text() == "called\n"


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StackError, match=r"cannot write into .*cache .*STACK_CACHE"):
        Site({}, tmp_path, tmp_path / "cache", {}).from_maven("kafka", "1")


WATERS = PROJECT / "pipelines/acid_waters/docker-compose.yml"


def test_a_missing_postgresql_is_one_line(tmp_path: Path) -> None:
    environ = {**os.environ, "STACK_STATE": str(tmp_path), "POSTGRES_VERSION": "99.1"}
    server = Stack([WATERS], environ).servers["postgresql"]
    with pytest.raises(StackError, match=r"PostgreSQL 99 is not installed .*install postgresql"):
        server.prepare()


def test_hadoop_s_settings_are_those_of_this_machine(tmp_path: Path) -> None:
    services = load_services([WATERS], {"NAMENODE_HOST_PORT": "19000"})
    site = Site(services, tmp_path, tmp_path, {})
    found = hdfs.settings(services["datanode"], site, "HDFS-SITE.XML_")
    assert found["dfs.datanode.address"] == "127.0.0.1:9866"
    assert found["dfs.datanode.data.dir"] == f"{tmp_path}/volumes/datanode_data/data"
    assert hdfs.settings(services["datanode"], site, "CORE-SITE.XML_") == {
        "fs.defaultFS": "hdfs://127.0.0.1:19000"
    }
    assert (
        hdfs.settings(services["namenode"], site, "HDFS-SITE.XML_")["dfs.namenode.rpc-bind-host"]
        == "127.0.0.1"
    )


def test_a_server_is_started_after_those_that_it_depends_on() -> None:
    stack = Stack([COMPOSE], dict(os.environ))
    assert stack.with_needs(["kafka"]) == ["zookeeper", "kafka"]
    assert stack.with_needs(["kafka", "zookeeper"]) == ["zookeeper", "kafka"]


def test_a_program_runs_in_a_locale_in_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    run(["sh", "-c", 'test "$LC_ALL" = C.UTF-8'], "asking for the locale")


def test_a_busy_port_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        environ = {**os.environ, "STACK_STATE": str(tmp_path), "ZOOKEEPER_HOST_PORT": str(port)}
        command = [sys.executable, "-m", "stack", "up", "zookeeper"]
        result = subprocess.run(
            command, cwd=PROJECT, env=environ, capture_output=True, text=True, check=False
        )
    assert result.returncode == 1
    assert result.stderr == (
        f"stack: port {port} (zookeeper) is already in use: stop the program that holds it, "
        "or set ZOOKEEPER_HOST_PORT in .env\n"
    )


def test_the_data_of_a_deleted_clone_are_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, state = tmp_path / "left", tmp_path / "state"
    monkeypatch.setattr("stack.lifecycle.unprivileged_folder", lambda _: left)

    def start_nothing() -> None:
        servers = Stack([COMPOSE], {**os.environ, "STACK_STATE": str(state)})
        servers.default = []
        servers.up()

    (left / "elasticsearch").mkdir(parents=True)
    start_nothing()
    assert not left.exists()
    (left / "elasticsearch").mkdir(parents=True)
    (state / "logs").mkdir(parents=True)
    start_nothing()
    assert left.exists()


def test_the_ports_of_a_first_start_stay_those_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an ordinary user, whose data are all in the state folder."""
    monkeypatch.setattr("stack.lifecycle.unprivileged_folder", lambda state: state)
    chosen = []
    for _ in range(2):
        servers = Stack([COMPOSE], {**os.environ, "STACK_STATE": str(tmp_path / "state")})
        servers.default = []
        servers.up()
        chosen.append(servers.site.host_port("kafka", 29092))
    assert chosen[0] == chosen[1]


def test_down_deletes_the_data_of_all_services_and_no_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    servers = Stack([COMPOSE], {**os.environ, "STACK_STATE": str(tmp_path)})
    with pytest.raises(StackError, match="name none"):
        servers.down(["kafka"], wipe=True)
    with pytest.raises(StackError, match="by hand"):
        servers.down(wipe=True)
    assert (tmp_path / "mine").exists()


def test_an_unknown_service_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STACK_STATE", str(tmp_path))
    assert main(["up", "kafkaa"]) == 1
    assert (
        capsys.readouterr().err
        == "stack: no service kafkaa: there is zookeeper, kafka, elasticsearch\n"
    )


def test_tools_are_those_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cqlsh").touch(mode=0o755)  # for a machine without the pipeline's requirements
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    ports = {"KAFKA_HOST_PORT": "19092", "CASSANDRA_HOST_PORT": "19042"}
    stack = Stack([CASSANDRA], {**os.environ, **ports, "STACK_STATE": str(tmp_path)})
    command = stack.tool("cassandra", "cqlsh", ["-e", "SELECT"])
    assert command[:3] == ["env", "CQLSH_HOST=127.0.0.1", "CQLSH_PORT=19042"]
    assert command[-2:] == ["-e", "SELECT"]
    with pytest.raises(StackError, match="unknown tool nodetool: there is cqlsh"):
        stack.tool("cassandra", "nodetool", [])
    with pytest.raises(StackError, match="no tools of a service zookeeper: there is kafka, cassan"):
        stack.tool("zookeeper", "zkCli", [])


def test_cassandra_reads_the_image_s_variables(tmp_path: Path) -> None:
    services = load_services([CASSANDRA], {"CASSANDRA_HEAP": "300M"})
    service = services["cassandra"]
    options = cassandra.jvm_options(service)
    extra = service.environment["JVM_EXTRA_OPTS"].split()
    assert options == ["-Xms300M", "-Xmx300M", *extra]
    assert cassandra.settings_of(service, tmp_path, 1, 2)["cluster_name"] == "iot"
    service.environment["CASSANDRA_SEEDS"] = "elsewhere"
    with pytest.raises(StackError, match="cassandra: not understood natively: CASSANDRA_SEEDS"):
        cassandra.cassandra(service, Site(services, tmp_path, tmp_path, {}))


def test_check_says_what_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STACK_STATE", str(tmp_path))
    assert main(["check"]) == 1
    assert main(["ps"]) == 0
    assert capsys.readouterr().out.count("not running") == 6


def test_the_env_file_beside_the_compose_file_wins_over_the_project_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    monkeypatch.setenv("THIRD", "shell")
    ours, theirs = tmp_path / "project.env", tmp_path / "folder.env"
    ours.write_text("FIRST=project\nSECOND=project\nTHIRD=project\n")
    theirs.write_text("SECOND=folder\nTHIRD=folder\n")
    environ = read_environment(ours, theirs, tmp_path / "none.env")
    found = [environ[name] for name in ("FIRST", "SECOND", "THIRD")]
    assert found == ["project", "folder", "shell"]


def test_prerequisites_say_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Debian without root and without sudo: apt-get is there, the rest is not."""
    (tmp_path / "apt-get").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert prerequisites.main(["java", "maven"]) == 1
    assert capsys.readouterr().err == (
        "missing: java, maven; type: sudo apt-get install openjdk-17-jre-headless maven\n"
    )
    assert prerequisites.main(["python2"]) == 2


def test_prerequisites_meet_an_older_python_and_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Python before 3.10 fails at the types of annotations, if it evaluates them."""
    file = Path(prerequisites.__file__)
    ast.parse(file.read_text(), feature_version=(3, 8))
    assert prerequisites.main.__annotations__["argv"] == "Sequence[str] | None"
    with monkeypatch.context() as older:
        older.setattr(sys, "version_info", (3, 9, 2))
        assert prerequisites.main([]) == 1
    assert capsys.readouterr().err.startswith("Python 3.11 or newer is needed; this is ")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "which", interrupted)
    monkeypatch.setattr(sys, "argv", ["prerequisites", "maven"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(file), run_name="__main__")
    assert ended.value.code == 130


# Profiles, configs, required variables, the servers of the transactions pipeline

PROFILES = """
services:
  always: {image: "kibana:1"}
  asked: {image: "kibana:1", profiles: [extra], depends_on: [always]}
"""


def started_by_default(tmp_path: Path, *profiles: str) -> list[str]:
    (tmp_path / "profiles.yml").write_text(PROFILES)
    environ = {**os.environ, "STACK_STATE": str(tmp_path)}
    return Stack([tmp_path / "profiles.yml"], environ, profiles).default


def test_a_service_with_a_profile_starts_only_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert started_by_default(tmp_path) == ["always"]
    assert started_by_default(tmp_path, "other") == ["always"]
    assert started_by_default(tmp_path, "extra", "other") == ["always", "asked"]
    monkeypatch.setenv("STACK_STATE", str(tmp_path))
    command = ["-f", str(tmp_path / "profiles.yml")]
    assert main([*command, "up"]) == 0
    assert "asked" not in capsys.readouterr().out
    monkeypatch.setenv("COMPOSE_PROFILES", "extra,other")
    assert main([*command, "up"]) == 0
    assert "asked          not started" in capsys.readouterr().out


def test_ports_of_an_overlay_are_added(tmp_path: Path) -> None:
    base = 'services: {a: {image: "z:2", ports: ["127.0.0.1:1:1", "127.0.0.1:2:2"]}}'
    overlay = 'services: {a: {ports: ["127.0.0.1:2:2", "127.0.0.1:13:3"]}}'
    (service,) = services_of(tmp_path, base, overlay)
    assert service.ports == {1: 1, 2: 2, 3: 13}


def test_configs_and_commands_are_read(tmp_path: Path) -> None:
    text = """
services:
  a: {image: "z:2", command: run --all "two words", configs: [{source: c, target: /etc/c.yml}]}
  b: {image: "z:2", command: [run, "$$HOME"]}
configs: {c: {content: "port ${PORT:-80}, price $$1"}}
"""
    a, b = services_of(tmp_path, text)
    assert (a.command, b.command) == (["run", "--all", "two words"], ["run", "$HOME"])
    assert a.configs == {"/etc/c.yml": "port 80, price $1"}


def test_a_required_variable_that_is_missing_is_one_line(tmp_path: Path) -> None:
    text = 'services: {a: {image: "z:2", environment: {P: "${SECRET:?copy .env.example to .env}"}}}'
    with pytest.raises(StackError, match=r"^SECRET is not set: copy \.env\.example to \.env$"):
        services_of(tmp_path, text)
    (tmp_path / "0.yml").write_text(text)
    assert load_services([tmp_path / "0.yml"], {"SECRET": "x"})["a"].environment == {"P": "x"}


TRANSACTIONS = PROJECT / "pipelines/transactions/docker-compose.yml"


def transactions_stack(tmp_path: Path, **environ: str) -> Stack:
    given = {"MINIO_ROOT_USER": "u", "MINIO_ROOT_PASSWORD": "secret", "STACK_STATE": str(tmp_path)}
    return Stack([TRANSACTIONS], {**os.environ, **given, **environ})


def test_minio_is_run_when_it_is_built_and_s3proxy_otherwise(tmp_path: Path) -> None:
    stand_in = transactions_stack(tmp_path, STACK_CACHE=str(tmp_path)).servers["minio"]
    assert "org.gaul.s3proxy.Main" in stand_in.command
    binary = tmp_path / f"minio-{MINIO_VERSION}" / "minio"
    binary.parent.mkdir()
    binary.touch()
    real = transactions_stack(tmp_path, STACK_CACHE=str(tmp_path)).servers["minio"]
    assert real.command[0] == str(binary)
    for server in (stand_in, real):
        assert server.address == "127.0.0.1:9000"
        assert "secret" not in " ".join(server.command)  # any user can read a command line


def test_prometheus_listens_where_its_command_says(tmp_path: Path) -> None:
    stack = transactions_stack(tmp_path, PROMETHEUS_HOST_PORT="19090")
    server = stack.servers["prometheus"]
    assert server.address == "127.0.0.1:19090"
    assert "--web.listen-address=127.0.0.1:19090" in server.command
    assert f"--config.file={tmp_path}/config/prometheus.yml" in server.command
    assert "prometheus" not in stack.default


def test_variables_in_the_file_of_a_config_are_kept(tmp_path: Path) -> None:
    text = """
services: {a: {image: "z:2", configs: [{source: x, target: /x}, {source: y, target: /y}]}}
configs: {x: {content: "${NAME:-one}"}, y: {file: ./sub/y}}
"""
    with pytest.raises(StackError, match=r"cannot read .*sub/y: No such file"):
        services_of(tmp_path, text)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/y").write_text("${NAME:-one} $$")
    (service,) = services_of(tmp_path, text)
    assert service.configs == {"/x": "one", "/y": "${NAME:-one} $$"}


def test_the_exporter_asks_the_native_elasticsearch(tmp_path: Path) -> None:
    environ = {"STACK_STATE": str(tmp_path), "ELASTICSEARCH_HOST_PORT": "19200"}
    server = Stack([COMPOSE, MONITORING], {**os.environ, **environ}).servers[
        "elasticsearch-exporter"
    ]
    assert server.address == "127.0.0.1:9114"
    assert "--web.listen-address=127.0.0.1:9114" in server.command
    assert "--es.uri=http://127.0.0.1:19200" in server.command


def test_kafka_shows_its_metrics_where_an_overlay_asks_for_it(tmp_path: Path) -> None:
    stack = transactions_stack(tmp_path, KAFKA_METRICS_HOST_PORT="19404")
    agents = [part for part in stack.servers["kafka"].command if part.startswith("-javaagent:")]
    assert len(agents) == 1
    assert "=127.0.0.1:19404:" in agents[0]
    assert not any(
        "javaagent" in part for part in Stack([COMPOSE], dict(os.environ)).servers["kafka"].command
    )


# Loopback without a proxy


class Loopback(BaseHTTPRequestHandler):
    """A server that works, or that wants its clients to log in first."""

    def do_GET(self) -> None:
        self.send_response(401 if self.path == "/private" else 200)
        self.end_headers()
        bean = '{"State": "active", "BPServiceActorInfo": "[{\\"ActorState\\": \\"RUNNING\\"}]"}'
        self.wfile.write(b'{"beans": [%b]}' % bean.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that does not answer, by every variable that names one."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["http", "https"])
def loopback(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, int, Path]]:
    """A server on loopback: its scheme, its port, its authority's certificate."""
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    (tmp_path / "server.pem").write_bytes(b"".join(authority.issue("server")))
    with ThreadingHTTPServer(("127.0.0.1", 0), Loopback) as server:
        if request.param == "https":
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(tmp_path / "server.pem")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield request.param, server.server_port, tmp_path / "ca.pem"
        server.shutdown()


@pytest.mark.usefixtures("dead_proxy")
def test_a_server_on_loopback_is_asked_without_a_proxy(loopback: tuple[str, int, Path]) -> None:
    scheme, port, authority = loopback
    url = f"{scheme}://127.0.0.1:{port}"
    assert answers(f"{url}/", authority=authority)
    assert answers(f"{url}/private", refusal=401, authority=authority)
    assert not answers(f"{url}/private", authority=authority)
    if scheme == "http":
        assert check_images.ask(f"{url}/")["beans"]
        assert hdfs.namenode_is_ready(port)
        assert hdfs.datanode_is_ready(port)


def test_only_one_function_of_the_stack_opens_a_url() -> None:
    """So that none goes through a proxy: see open_on_loopback."""
    users = [
        file.name
        for file in PROJECT.glob("stack/**/*.py")
        if any(word in file.read_text() for word in ("urlopen", "build_opener", "http.client."))
    ]
    assert users == ["servers.py"]


# .env and the console


@pytest.mark.parametrize(
    "line",
    [
        b"KAFKA_HOST_PORT: s3cr3t",
        b"KAFKA_HOST_PORT",
        b'KAFKA_HOST_PORT="s3cr3t',
        b"=s3cr3t",
        b"KAFKA_HOST_PORT=s3cr3t\xe9",  # Latin-1
        b"KAFKA_HOST_PORT=s3cr3t\0",
    ],
)
def test_a_wrong_line_of_env_is_one_line_that_does_not_show_it(
    line: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / ".env").write_bytes(b"A=a\n\n" + line + b"\nB=b\n")
    monkeypatch.setattr("stack.__main__.ENV_FILE", tmp_path / ".env")
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    assert main(["ps"]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"stack: {tmp_path}/.env, line 3: not ")
    assert "s3cr3t" not in told


def test_the_real_environment_wins_over_env(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".env"
    assert read_env_file(file) == {}
    file.write_bytes(b"\xef\xbb\xbfA=first\r\n\r\n# comment\r\nexport B='x y'\r\nC=${A}\r\n")
    assert read_env_file(file) == {"A": "first", "B": "x y", "C": "${A}"}
    monkeypatch.setenv("A", "real")
    assert "B" not in read_environment(file)  # PYTHON_DOTENV_DISABLED
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    environ = read_environment(file)
    assert (environ["A"], environ["B"]) == ("real", "x y")


@pytest.mark.parametrize(
    ("redirection", "code", "lines"), [(">&-", 0, 0), (">/dev/full", 1, 1), ("| true", 1, 0)]
)
def test_an_output_that_nobody_can_read_leaves_no_trace(
    redirection: str, code: int, lines: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["bash", "-c", f'"$0" -m stack ps {redirection}; exit ${{PIPESTATUS[0]}}', sys.executable],
        cwd=PROJECT,
        env={**os.environ, "STACK_STATE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == lines
