"""The S3 store, MinIO or any other: its settings, its client without Spark, Spark's options for it.

Environment (or .env in this folder, or in the project's):
    S3_ENDPOINT            default http://127.0.0.1:9000
    S3_BUCKET              default transactions
    MINIO_ROOT_USER        default Minio
    MINIO_ROOT_PASSWORD    default Minio123

The default user and password are for a store on this machine; for another one, both must be set.

What lies in the bucket, and what the folders of the same batch have in common is its number:

    output/date=2026-10-25/batch_id=12/part-….parquet    transactions, by day in Paris
    rejects/batch_id=12/part-….parquet                   what was refused, and why
    checkpoint/                                          how far the stream has come, in which topic
    model/                                               the score, when it has been trained
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pyarrow import fs

from stack.console import CommandError

OUTPUT, REJECTS, CHECKPOINT, MODEL = "output", "rejects", "checkpoint", "model"
CARD = f"{MODEL}/card.json"  # what the score has learnt, and what it is worth
TOPIC_ID = f"{CHECKPOINT}/topic_id"  # a file of ours: Spark reads only those it knows there


LOOPBACK = ("127.0.0.1", "localhost", "::1")


class StoreError(CommandError):
    """What is wrong with the store, in one line for the user."""


class SettingError(StoreError):
    """What is wrong with the settings of the store; the exit code is 2."""


@dataclass(frozen=True)
class Store:
    """One bucket of an S3 store; defaults are written in `from_env` only."""

    endpoint: str
    bucket: str
    user: str
    password: str = field(repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Store":
        """Return the store that the environment names.

        Raises:
            SettingError: the endpoint is not an http address, the bucket is not a name, or there
                are no credentials for a store elsewhere.
        """
        settings = (("S3_ENDPOINT", "http://127.0.0.1:9000"), ("S3_BUCKET", "transactions"))
        endpoint, bucket = (environ.get(name) or default for name, default in settings)
        if not is_address(endpoint):  # and is not shown, as there may be a password in it
            raise SettingError("S3_ENDPOINT is not http://HOST:PORT or https://HOST:PORT")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            allowed = "3 to 63 small letters, digits or . -"
            raise SettingError(f"S3_BUCKET={bucket} is not the name of a bucket: {allowed}")
        user, password = environ.get("MINIO_ROOT_USER"), environ.get("MINIO_ROOT_PASSWORD")
        if not (user or password) and urlsplit(endpoint).hostname in LOOPBACK:
            user, password = "Minio", "Minio123"
        if not (user and password):
            raise SettingError(f"set MINIO_ROOT_USER and MINIO_ROOT_PASSWORD for {endpoint}")
        return cls(endpoint.rstrip("/"), bucket, user, password)

    def url(self, folder: str) -> str:
        """Return a folder's address as Spark takes it."""
        return f"s3a://{self.bucket}/{folder}"

    def filesystem(self) -> fs.S3FileSystem:
        """Return a client that gives up on a store that is away within seconds."""
        return fs.S3FileSystem(
            access_key=self.user,
            secret_key=self.password,
            endpoint_override=self.endpoint,
            region="us-east-1",  # what MinIO answers to when it is given none
            allow_bucket_creation=True,
            connect_timeout=3,
            request_timeout=10,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
        )

    def spark_options(self) -> dict[str, str]:
        """Return Spark's settings for the store, without its credentials."""
        s3a = {
            "endpoint": self.endpoint,
            "endpoint.region": "us-east-1",
            "path.style.access": "true",  # http://HOST/BUCKET: a bucket is no host name here
            "connection.ssl.enabled": str(self.endpoint.startswith("https://")).lower(),
            "aws.credentials.provider": "org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider",
            # A store that is away is told within half a minute, not after Hadoop's many minutes;
            # the consumer itself then waits for it.
            "attempts.maximum": "2",
            "retry.limit": "2",
            "connection.establish.timeout": "3000",  # ms
            "connection.timeout": "10000",  # ms
        }
        return {f"spark.hadoop.fs.s3a.{name}": value for name, value in s3a.items()}

    def check(self) -> None:
        """Make sure that the bucket is there and may be read.

        Raises:
            StoreError: it is not, or nobody answers.
        """
        try:
            info = self.filesystem().get_file_info(self.bucket)
        except OSError as exc:
            raise StoreError(self.explain(exc)) from exc
        if info.type != fs.FileType.Directory:
            raise StoreError(
                f"there is no bucket {self.bucket} at {self.endpoint}: run python prepare.py"
            )

    def explain(self, exc: OSError) -> str:
        """Return a client's error as one line, without what only its authors understand."""
        text = " ".join(str(exc).split())
        if "ACCESS_DENIED" in text or "SIGNATURE" in text or "INVALID_ACCESS_KEY" in text:
            return f"the store at {self.endpoint} refuses MINIO_ROOT_USER or MINIO_ROOT_PASSWORD"
        said = text.partition("AWS Error ")[2]
        if said and "NETWORK_CONNECTION" not in said:
            return f"the store at {self.endpoint} answers with an error ({said[:200]})"
        return f"the store at {self.endpoint} does not answer ({text.rpartition(': ')[2][:120]})"


def is_address(endpoint: str) -> bool:
    """Return whether this is http://HOST:PORT or https://HOST:PORT, and nothing besides."""
    with suppress(ValueError):  # a port or brackets that are none
        parts = urlsplit(endpoint)
        is_alone = endpoint.rstrip("/") == f"{parts.scheme}://{parts.netloc}"
        is_web = parts.scheme in ("http", "https") and "@" not in endpoint
        return is_web and is_alone and bool(parts.hostname) and parts.port != 0
    return False
