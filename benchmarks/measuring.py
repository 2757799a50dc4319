"""Processes that take turns, their time and their memory: what the benchmarks measure with."""
from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from cian.environment import usable_cores, users_environment
from cian.errors import InputError

SAMPLING_SHARE = 0.02  # of the time of a core that reading memory may take
# variables that change speed
STEERING = ("OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_", "MKLDNN_", "DNNL_", "MXNET_", "MALLOC_", "GLIBC_")
PACKAGES = ("mxnet", "numpy", "opencv-python", "opencv-python-headless", "pydensecrf2")


class PeakMemory:
    """Peak memory of a process and all below it, in MB.

    It is the sum of proportional set sizes: a page that n processes share counts for 1/n in each.
    Reading it takes time in proportion to the memory, so the pause between readings grows with it.
    A peak between two readings is seen where one process alone goes beyond them: the system keeps
    the largest size that each process has had, which :meth:`wait` takes into account.
    """

    def __init__(self, pid: int) -> None:
        self.peak_mb = self.cpu_seconds = 0.0
        self._pid, self._stop = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def wait(self, process: subprocess.Popen) -> int:
        """Wait for the end of the process; returns its code."""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self._stop.set()
        self._thread.join()
        # a child's begins with its parent's
        if usage.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
            self.peak_mb = max(self.peak_mb, usage.ru_maxrss * 1024 / 1e6)
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        return process.returncode

    def _watch(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            start = time.thread_time()  # not the time of others: a pause would grow with their load
            self.peak_mb = max(self.peak_mb, sum(map(resident_mb, family(self._pid))))
            pause = max(0.05, (time.thread_time() - start) / SAMPLING_SHARE)


def family(pid: int) -> List[int]:
    """The process and all that it has started, directly or not; those that have ended are left out."""
    found, index = [pid], 0
    while index < len(found):
        try:
            for thread in os.listdir(f"/proc/{found[index]}/task"):
                with open(f"/proc/{found[index]}/task/{thread}/children", encoding="ascii") as stream:
                    found.extend(map(int, stream.read().split()))
        except OSError:
            pass  # it has ended
        index += 1
    return found


def resident_mb(pid: int) -> float:
    """Proportional set size of a process, MB; 0 for one that has ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as stream:
            return next((int(line.split()[1]) * 1024 / 1e6 for line in stream if line.startswith("Pss:")),
                        0.0)
    except OSError:
        return 0.0


def cpu_seconds(pid: int) -> float:
    """CPU time so far of a process and all below it, and of those below it that have ended and were
    waited for.
    """
    total = 0
    for one in family(pid):
        with contextlib.suppress(OSError), open(f"/proc/{one}/stat", encoding="ascii") as stream:
            total += sum(map(int, stream.read().rsplit(")", 1)[1].split()[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def environment(threads: int) -> Dict[str, str]:
    """The user's environment with so many OpenMP threads; 0 leaves the number to the program. What
    importing cian has set is left out.
    """
    result = {**users_environment(), "PYTHONDONTWRITEBYTECODE": "1"}
    result.pop("OMP_NUM_THREADS", None)
    return {**result, "OMP_NUM_THREADS": str(threads)} if threads else result


class Measured:
    """Seconds, CPU seconds and peak memory of a command that was run once."""

    def __init__(self, command: Sequence[str], log: str, threads: int = 0, cwd: Optional[str] = None) -> None:
        start = time.perf_counter()
        with open(log, "w", encoding="utf-8") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT,
                                       stdin=subprocess.DEVNULL, cwd=cwd, env=environment(threads))
            memory = PeakMemory(process.pid)
            code = memory.wait(process)
            self.seconds = time.perf_counter() - start
        self.peak_mb, self.cpu_seconds = memory.peak_mb, memory.cpu_seconds
        if code:
            raise InputError(f"ended with code {code}: {last_line(log)}", file=log,
                             field=" ".join(command[1:4]), remedy="keep the files with --work and read it")


class Server:
    """A process that does one piece of work when it is asked to (see :mod:`serving`).

    Parameters
    ----------
    program : Python file beside this one.
    job : what it reads from a JSON file; the number of its pipe is added.
    folder : of the job's file and of the log.
    python : the interpreter.
    """

    def __init__(self, program: str, job: Mapping[str, Any], folder: str, threads: int = 0,
                 python: str = sys.executable) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        os.makedirs(folder, exist_ok=True)
        path, self._log = os.path.join(folder, "job.json"), os.path.join(folder, "log.txt")
        with open(path, "w", encoding="utf-8") as stream:
            json.dump({**job, "pipe": theirs.fileno()}, stream)
        with open(self._log, "w", encoding="utf-8") as stream:
            self._process = subprocess.Popen([python, beside(program), path], stdout=stream,
                                             stderr=subprocess.STDOUT, env=environment(threads),
                                             pass_fds=[theirs.fileno()])
        theirs.close()
        self._memory = PeakMemory(self._process.pid)
        self._receive()

    def run(self) -> Tuple[float, float]:
        """Seconds and CPU seconds of one more piece of work."""
        before = cpu_seconds(self._process.pid)
        self._pipe.send(True)
        return float(self._receive()), cpu_seconds(self._process.pid) - before

    def close(self) -> float:
        """End the process; returns its peak memory in MB."""
        with contextlib.suppress(OSError):  # it has died, and its error was raised before
            self._pipe.send(False)
        if self._process.returncode is None:
            self._memory.wait(self._process)
        return self._memory.peak_mb

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError as error:
            raise InputError(f"ended with code {self._memory.wait(self._process)}: {last_line(self._log)}",
                             file=self._log, remedy="keep the files with --work and read it") from error


def beside(name: str) -> str:
    """Path of a file of this folder."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), name)


def last_line(path: str) -> str:
    """The last line of a log that says something."""
    with open(path, encoding="utf-8", errors="replace") as stream:
        lines = [line.strip() for line in stream if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def spread(values: Sequence[float]) -> Dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Dict[str, float]:
    """How many times as long the first took as the second, round by round: median, least and largest."""
    return spread([one / other for one, other in zip(slow, fast)])


def machine() -> Dict[str, Any]:
    """Processor, cores and load of this machine, versions of what runs on it, and the user's
    variables that change how fast.
    """
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    facts = {key: next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
             for key in ("model name", "flags")}
    vectors = [flag
               for flag in ("avx2", "avx512f", "avx512_vnni", "amx_bf16") if flag in facts["flags"].split()]
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"processor": facts["model name"], "vectors": vectors, "cores": usable_cores(),
            "load": round(os.getloadavg()[0], 2),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
            "python": platform.python_version(), "cian": version("cian"), **found,
            "variables": {name: value
                          for name, value in sorted(environment(0).items()) if name.startswith(STEERING)}}
