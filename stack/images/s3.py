"""MinIO, or another S3 store that stands in for it.

MinIO has no package; its own source builds with Go, once, in 5 to 8 minutes. Where that binary is
in the cache it is run, else S3Proxy (a gateway to S3, here before a folder) from Maven Central: the
same address, credentials and API, without MinIO's console and metrics.
"""

from pathlib import Path

from stack.compose import Service
from stack.servers import Server, Site, answers, refuse_unknown, say, write_properties

# The module has no releases that Go understands as versions, hence a commit.
MINIO_VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
S3PROXY_VERSION = "4.1.0"
CREDENTIALS = ("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD")


def minio(service: Service, site: Site) -> Server:
    """Return the server of a minio service."""
    refuse_unknown(service, {n for n in service.environment if not n.startswith("MINIO_")})
    binary = site.cached("minio", MINIO_VERSION) / "minio"
    return real_minio(service, site, binary) if binary.exists() else s3proxy(service, site, binary)


def real_minio(service: Service, site: Site, binary: Path) -> Server:
    """Return MinIO itself."""
    port, console = site.host_port(service.name, 9000), site.host_port(service.name, 9001)
    data = site.volume(service, "/data")
    addresses = ["--address", f"127.0.0.1:{port}", "--console-address", f"127.0.0.1:{console}"]
    return Server(
        name=service.name,
        depends_on=service.depends_on,
        address=f"127.0.0.1:{port}",
        marker=str(data),
        command=[str(binary), "server", str(data), *addresses],
        is_ready=lambda: answers(f"http://127.0.0.1:{port}/minio/health/live", refusal=403),
        environment=service.environment,
        prepare=lambda: data.mkdir(parents=True, exist_ok=True),
    )


def s3proxy(service: Service, site: Site, binary: Path) -> Server:
    """Return S3Proxy with MinIO's address and credentials."""
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
        version = f"-Ds3proxy.version={S3PROXY_VERSION}"
        site.from_maven("s3", S3PROXY_VERSION, "copy-dependencies", version)
        data.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)  # it holds the password
        write_properties(file, settings)

    return Server(
        name=service.name,
        depends_on=service.depends_on,
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
