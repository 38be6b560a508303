"""One run of what is measured: processes, watched from outside until all is where it should be."""

import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benches.scene import SERVERS, BenchError, Scene

LOOK_S = 0.02  # between two looks at how many have arrived
STAND_STILL_S = 120.0  # nothing new for so long: it will not come
STOP_S = 30.0  # for a process to end after the last reading

Seen = tuple[float, int]  # when (time.monotonic), how many


@dataclass
class Run:
    """What one run gave, and what it cost.

    Attributes:
        per_s: readings per second, from the first to the last that arrived.
        seconds: from the start of the processes to the last reading.
        client_cpu_s: processor time of what is measured, from its start to its end.
        elasticsearch_cpu_s: the same of Elasticsearch, until the last reading.
        kafka_cpu_s: the same of Kafka.
        memory_mb: the largest of the processes, at its peak.
    """

    per_s: float
    seconds: float
    client_cpu_s: float
    elasticsearch_cpu_s: float
    kafka_cpu_s: float
    memory_mb: float


def watched(
    scene: Scene,
    commands: Sequence[Sequence[str]],
    environ: Mapping[str, str],
    count: Callable[[], int],
    wanted: int,
    stays: bool = False,
) -> Run:
    """Start processes and count what they have done, again and again, until all is done.

    Args:
        scene: the servers that work meanwhile.
        commands: one process each; what it prints goes into a file, see `log_file`.
        environ: of each process.
        count: asks a server how many readings have arrived.
        wanted: how many make all.
        stays: whether the processes run until they are told to stop.

    Raises:
        BenchError: they ended before all was done, or stood still.
    """
    before = {server: server_cpu_s(scene, server) for server in SERVERS}
    processes: list[subprocess.Popen[bytes]] = []
    logs = [log_file(scene, environ, number) for number in range(len(commands))]
    peaks_mb: dict[int, float] = {}  # by process

    def look() -> int:
        for process in processes:
            before_mb = peaks_mb.get(process.pid, 0.0)
            peaks_mb[process.pid] = max(before_mb, peak_memory_mb(process.pid))
        return count()

    with ExitStack() as stack:
        began = time.monotonic()
        for command, file in zip(commands, logs, strict=True):
            log = stack.enter_context(file.open("wb"))
            process = subprocess.Popen(command, env=dict(environ), stdout=log, stderr=log)
            processes.append(process)
            stack.callback(kill, process)
        try:
            seen = watch(look, wanted, processes)
        except BenchError as exc:
            lines = logs[0].read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise BenchError(f"{exc}; it said: {lines[-1][:300]}") from exc
        servers_cpu_s = {server: server_cpu_s(scene, server) - before[server] for server in SERVERS}
        client_cpu_s = sum(end(process, stays) for process in processes)
    return Run(
        per_s=rate(seen),
        seconds=seen[-1][0] - began,
        client_cpu_s=client_cpu_s,
        elasticsearch_cpu_s=servers_cpu_s["elasticsearch"],
        kafka_cpu_s=servers_cpu_s["kafka"],
        memory_mb=max(peaks_mb.values()),
    )


def log_file(scene: Scene, environ: Mapping[str, str], number: int) -> Path:
    """Return the file of what one of a run's processes prints."""
    return scene.folder / f"{environ['KAFKA_GROUP_ID']}-{number}.log"


def watch(
    count: Callable[[], int], wanted: int, processes: Sequence[subprocess.Popen[bytes]]
) -> list[Seen]:
    """Count until all is there; return what was seen, from the last look that found nothing on.

    Raises:
        BenchError: the processes ended before that, or nothing new came for a long time.
    """
    seen: list[Seen] = [(time.monotonic(), 0)]
    last_news, ended_early = time.monotonic(), 0
    while ended_early <= 5 and time.monotonic() < last_news + STAND_STILL_S:
        look = time.monotonic(), count()
        if look[1] != seen[-1][1]:
            seen.append(look)
            last_news = time.monotonic()
        elif len(seen) == 1:
            seen[0] = look
        if look[1] >= wanted:
            return seen
        ended_early += all(map(has_ended, processes))
        time.sleep(LOOK_S)
    raise BenchError(f"{seen[-1][1]} of {wanted} readings arrived, then nothing more")


def rate(seen: Sequence[Seen]) -> float:
    """Return the readings per second from the last look that found none to the last reading.

    >>> rate([(10.0, 0), (11.0, 150), (12.0, 500)])
    250.0
    """
    (first_s, first), (last_s, last) = seen[0], seen[-1]
    return (last - first) / (last_s - first_s)


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process has ended, and leave it to `end`, which asks what it has used."""
    return bool(os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG))


def end(process: subprocess.Popen[bytes], stays: bool) -> float:
    """Wait for the end of a process, or tell it to stop; return its processor time, in seconds."""
    if stays:
        process.terminate()
    deadline = time.monotonic() + STOP_S
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage.ru_utime + usage.ru_stime
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(0.05)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs."""
    process.kill()
    process.wait()


def peak_memory_mb(pid: int) -> float:
    """Return the largest memory that a process had until now, in MB; 0 when it has ended.

    wait4's own figure would not do: it counts our memory too, from before the program was loaded.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(peak[1]) / 1024 if peak else 0.0


def server_cpu_s(scene: Scene, server: str) -> float:
    """Return the processor time that a server's process group has used, in seconds.

    Raises:
        BenchError: it does not run.
    """
    group = scene.stack.pid(server)
    if not group:
        raise BenchError(f"{server} does not run")
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def spread(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the number of runs, and of each of their figures [minimum, median, maximum]."""
    found: dict[str, Any] = {"runs": len(runs)}
    rows = [asdict(one) for one in runs]
    for name in rows[0]:
        values = [row[name] for row in rows]
        three = min(values), statistics.median(values), max(values)
        found[name] = [round(value, 3) for value in three]
    return found
