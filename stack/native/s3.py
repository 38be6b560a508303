"""MinIO, or another S3 store in its place.

MinIO has no package; Go builds it from its source, once, in 5 to 8 minutes. Its binary is run when
it is in the cache. Otherwise S3Proxy from Maven Central serves a folder by the S3 API, with MinIO's
address and credentials, and without its console and metrics.
"""

from pathlib import Path

from stack.compose import Service
from stack.console import say
from stack.servers import Server, Site, answers, refuse_unknown, write_properties

# A commit, because Go does not understand the names of MinIO's releases as versions.
MINIO_VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
S3PROXY_VERSION = "4.1.0"
CREDENTIALS = ("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD")


def minio(service: Service, site: Site) -> Server:
    """Return the server of a minio service."""
    refuse_unknown(service, {n for n in service.environment if not n.startswith("MINIO_")})
    binary = site.cached("minio", MINIO_VERSION) / "minio"
    return real_minio(service, site, binary) if binary.exists() else s3proxy(service, site, binary)


def real_minio(service: Service, site: Site, binary: Path) -> Server:
    """Return the server MinIO."""
    port, console = site.host_port(service.name, 9000), site.host_port(service.name, 9001)
    data = site.volume(service, "/data")
    addresses = ["--address", f"127.0.0.1:{port}", "--console-address", f"127.0.0.1:{console}"]
    return Server(
        service=service,
        address=f"127.0.0.1:{port}",
        marker=str(data),
        command=[str(binary), "server", str(data), *addresses],
        is_ready=lambda: answers(f"http://127.0.0.1:{port}/minio/health/live", refusal=403),
        environment=service.environment,
        prepare=lambda: data.mkdir(parents=True, exist_ok=True),
    )


def s3proxy(service: Service, site: Site, binary: Path) -> Server:
    """Return the server S3Proxy with MinIO's address and credentials.

    Args:
        service: the minio service.
        site: where it runs.
        binary: where MinIO would be, for the hint how to build it.
    """
    port = site.host_port(service.name, 9000)
    data = site.volume(service, "/data")
    file = site.config_file(service, "properties")
    user, password = (service.environment[name] for name in CREDENTIALS)
    settings = {
        "s3proxy.authorization": "aws-v2-or-v4",
        "s3proxy.endpoint": f"http://127.0.0.1:{port}",
        "s3proxy.identity": user,
        "s3proxy.credential": password,
        "jclouds.provider": "filesystem-nio2",
        "jclouds.identity": "none",
        "jclouds.credential": "none",
        "jclouds.filesystem.basedir": str(data),
    }

    def prepare() -> None:
        say(
            f"{service.name}: S3Proxy stands in for MinIO. For MinIO, once (5 to 8 minutes): "
            f"GOBIN={binary.parent} go install github.com/minio/minio@{MINIO_VERSION}"
        )
        site.from_maven("s3", S3PROXY_VERSION)
        data.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)  # it holds the password
        write_properties(file, settings)

    return Server(
        service=service,
        address=f"127.0.0.1:{port}",
        marker=str(file),
        command=[
            *site.java(site.cached("s3", S3PROXY_VERSION), ["-Xmx256m"]),
            "org.gaul.s3proxy.Main",
            "--properties",
            str(file),
        ],
        is_ready=lambda: answers(f"http://127.0.0.1:{port}/", refusal=403),
        prepare=prepare,
    )
