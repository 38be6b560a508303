"""The fixture of the faults: a scene for each test, on the session's servers."""

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.lifecycle import Stack
from tests.conftest import Pipeline
from tests.faults.proxy import BulkProxy, TcpProxy
from tests.faults.scene import Scene


@pytest.fixture
def scene(stack: Stack, pipeline: Pipeline, tmp_path: Path) -> Iterator[Scene]:
    """A pipeline behind proxies. FAULT_SEED repeats the random choices of an earlier run."""
    advertised = stack.services["kafka"].environment["KAFKA_ADVERTISED_LISTENERS"]
    found = re.search(r"PROXIED://127\.0\.0\.1:(\d+)", advertised)
    assert found
    listener = stack.site.host_port("kafka", 19092)
    scene = Scene(
        stack=stack,
        pipeline=pipeline,
        kafka=TcpProxy(("127.0.0.1", listener), int(found[1])),
        bulks=BulkProxy(stack.servers["elasticsearch"].address),
        folder=tmp_path,
        seed=int(os.environ.get("FAULT_SEED") or random.randrange(1_000_000)),
    )
    try:
        yield scene
    finally:
        scene.close()
        stack.up()  # a failed test may have left a server stopped
