"""One run of what is measured: its processes are watched from outside until all is done."""

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

from benches.testbed import PROJECT, SERVERS, BenchError, Testbed

COUNT_INTERVAL_S = 0.02
STALL_TIMEOUT_S = 120.0  # if nothing has arrived for so long, nothing more will
STOP_TIMEOUT_S = 30.0  # for a process to end after the last reading

Observation = tuple[float, int]  # time.monotonic(), number of readings that have arrived


@dataclass
class Run:
    """The figures of one run.

    Attributes:
        per_s: readings per second, from the first to the last that arrived.
        seconds: from the start of the processes to the last reading.
        client_cpu_s: processor time of the measured processes, from their start to their end.
        elasticsearch_cpu_s: processor time of Elasticsearch, until the last reading.
        kafka_cpu_s: processor time of Kafka, until the last reading.
        memory_mb: peak memory of the largest of the measured processes.
    """

    per_s: float
    seconds: float
    client_cpu_s: float
    elasticsearch_cpu_s: float
    kafka_cpu_s: float
    memory_mb: float


def run_processes(
    testbed: Testbed,
    commands: Sequence[Sequence[str]],
    environment: Mapping[str, str],
    count: Callable[[], int],
    expected: int,
    runs_on: bool = False,
) -> Run:
    """Start processes, count again and again the readings that have arrived, until all have.

    Args:
        testbed: the servers that the processes use.
        commands: one command line for each process.
        environment: environment of each process.
        count: returns the number of readings that have arrived, as a server knows it.
        expected: the number of readings at the end.
        runs_on: whether the processes run until they are told to stop.

    Raises:
        BenchError: the processes ended before all readings arrived, or no more arrived.
    """
    before = {server: server_cpu_s(testbed, server) for server in SERVERS}
    processes: list[subprocess.Popen[bytes]] = []
    logs = [
        log_file(testbed, environment["KAFKA_GROUP_ID"], number) for number in range(len(commands))
    ]
    peaks_mb: dict[int, float] = {}  # by process id

    def count_and_note_memory() -> int:
        for process in processes:
            before_mb = peaks_mb.get(process.pid, 0.0)
            peaks_mb[process.pid] = max(before_mb, peak_memory_mb(process.pid))
        return count()

    with ExitStack() as stack:
        began = time.monotonic()
        for command, file in zip(commands, logs, strict=True):
            log = stack.enter_context(file.open("wb"))
            process = subprocess.Popen(
                command, cwd=PROJECT, env=dict(environment), stdout=log, stderr=log
            )
            processes.append(process)
            stack.callback(kill, process)
        try:
            observations = count_until(expected, count_and_note_memory, processes)
        except BenchError as exc:
            lines = logs[0].read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise BenchError(f"{exc}; it said: {lines[-1][:300]}") from exc
        cpu_s = {server: server_cpu_s(testbed, server) - before[server] for server in SERVERS}
        client_cpu_s = sum(end(process, runs_on) for process in processes)
    return Run(
        per_s=rate(observations),
        seconds=observations[-1][0] - began,
        client_cpu_s=client_cpu_s,
        elasticsearch_cpu_s=cpu_s["elasticsearch"],
        kafka_cpu_s=cpu_s["kafka"],
        memory_mb=max(peaks_mb.values()),
    )


def log_file(testbed: Testbed, group: str, number: int) -> Path:
    """Return the file of what one of a run's processes prints, given its consumer group."""
    return testbed.folder / f"{group}-{number}.log"


def count_until(
    expected: int, count: Callable[[], int], processes: Sequence[subprocess.Popen[bytes]]
) -> list[Observation]:
    """Count until all readings have arrived.

    Returns:
        The last observation of no reading, then each that differs from the one before.

    Raises:
        BenchError: the processes ended before that, or no more readings arrived.
    """
    observations: list[Observation] = [(time.monotonic(), 0)]
    last_change, counts_after_end = time.monotonic(), 0
    while counts_after_end <= 5 and time.monotonic() < last_change + STALL_TIMEOUT_S:
        observation = time.monotonic(), count()
        if observation[1] != observations[-1][1]:
            observations.append(observation)
            last_change = time.monotonic()
        elif len(observations) == 1:
            observations[0] = observation
        if observation[1] >= expected:
            return observations
        counts_after_end += all(map(has_ended, processes))
        time.sleep(COUNT_INTERVAL_S)
    raise BenchError(f"{observations[-1][1]} of {expected} readings arrived, then nothing more")


def rate(observations: Sequence[Observation]) -> float:
    """Return the readings per second, from the last observation of none to the last reading.

    >>> rate([(10.0, 0), (11.0, 150), (12.0, 500)])
    250.0
    """
    (first_s, first), (last_s, last) = observations[0], observations[-1]
    return (last - first) / (last_s - first_s)


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process has ended; `end` can still ask for its processor time."""
    return bool(os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG))


def end(process: subprocess.Popen[bytes], terminate: bool) -> float:
    """Let a process end, after SIGTERM or by itself; return its processor time, in seconds."""
    if terminate:
        process.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage.ru_utime + usage.ru_stime
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(0.05)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, if it still runs."""
    process.kill()
    process.wait()


def peak_memory_mb(pid: int) -> float:
    """Return the largest memory that a process has had until now, in MB; 0 when it has ended.

    The figure of wait4 is not used: it includes the bench's own memory, before the program starts.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(peak[1]) / 1024 if peak else 0.0


def server_cpu_s(testbed: Testbed, server: str) -> float:
    """Return the processor time that a server's process group has used, in seconds.

    Raises:
        BenchError: the server does not run.
    """
    group = testbed.stack.pid(server)
    if not group:
        raise BenchError(f"{server} does not run")
    return cpu_s(lambda fields: int(fields[2]) == group, slice(11, 13))


def cpu_s(is_wanted: Callable[[list[str]], bool], times: slice) -> float:
    """Return the processor time that some processes have used, in seconds.

    Args:
        is_wanted: says of which; it gets the fields of /proc/PID/stat from the state on, which is
            number 0: 2 is the process group, 3 the session (Linux, proc(5)).
        times: the fields to add up: 11 and 12 are a process's own time, 13 and 14 that of its
            children that have ended.
    """
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:  # the process has ended
            continue
        if is_wanted(fields):
            ticks += sum(map(int, fields[times]))
    return ticks / os.sysconf("SC_CLK_TCK")


def summarize(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the number of runs, and [minimum, median, maximum] of each of their figures."""
    summary: dict[str, Any] = {"runs": len(runs)}
    rows = [asdict(run) for run in runs]
    for name in rows[0]:
        values = [row[name] for row in rows]
        three = min(values), statistics.median(values), max(values)
        summary[name] = [round(value, 3) for value in three]
    return summary
