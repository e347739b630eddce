"""The driver of a study or sweep: submits to Ray what is not done, waits, and ends what it has started."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gru_fast.jobs.doing import Place, Task, do, in_line
from gru_fast.report.progress import Progress
from gru_fast.runs.files import only_one
from gru_fast.runs.records import FAILED, RECORDS, RUNNING, Job, Records, Status, can_start

_DRIVER = ".driver"  # in the folder of records: who drives, or drove last
_LOOK_SECONDS = 0.5
_MAX_DEATHS = 3  # of workers at one job, which then has failed
_ENDED = {"LocalRayletDiedError", "OwnerDiedError", "RaySystemError", "RpcError"}  # of ray.exceptions: it is gone
_THREADS = "OMP_NUM_THREADS"
_CLUSTER_THREADS = 1  # a run's, unless _THREADS says otherwise: it asks Ray for one core
_OBJECTS = 80 * 2**20  # bytes of Ray's object store, about its least: jobs hand files on, not objects
_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "TOKENIZERS_PARALLELISM")
# Ray's settings, as it reads them when it is imported; somebody's own stay.
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a job that has asked for no GPU sees them all, as without Ray
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # with this its daemon's messages stay off the terminal; jobs have logs
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # no stack of C++ at a SIGTERM
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers start as the driver did, not by uv
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_kill_child_processes_on_worker_exit": "false",  # SIGKILL, from which launchers could not end their processes
    "RAY_memory_monitor_refresh_ms": "0",  # memory is the kernel's matter: Ray would kill a job and try it for ever
    "RAY_worker_niceness": "0",
}
_LOCAL = {
    "RAY_AUTH_MODE": "token",  # with one of its own: Ray would leave one in the home folder, for other clusters too
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what binds it to the loopback address, on Linux as well
}


def _option(text: str) -> Any:
    return field(default=None, metadata={"help": text})


@dataclass
class Cluster:
    """Where runs are made, how many at a time, on what."""

    workers: int | None = _option("runs at a time; by default 1, with --address as many as the cluster has room for")
    gpus_per_run: float | None = _option(
        "GPUs of each run, 0.5: two share one; by default an equal part of this machine's, with --address none"
    )
    address: str | None = _option(
        "of a Ray cluster whose machines share the output folder: auto, HOST:PORT or ray://...; by default Ray is "
        "started on this machine, and stopped"
    )

    def __post_init__(self) -> None:
        problems = []
        if self.workers is not None and self.workers < 1:
            problems.append(f"workers: expected a whole number of at least 1, got {self.workers}")
        gpus = self.gpus_per_run
        if gpus is not None and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
            problems.append(f"gpus_per_run: expected a whole number, or a share below 1, got {gpus:g}")
        if problems:
            raise ValueError("; ".join(problems))


def alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    """RuntimeError while another driver works in the folder. To be held over :func:`run`, and over what is written for
    its jobs beforehand.
    """
    return only_one(folder / RECORDS / _DRIVER)


def is_free(folder: Path) -> bool:
    """Whether a folder is not there or empty, but for the lock of a driver that ended before it wrote anything."""
    if not folder.is_dir():
        return not folder.exists()
    there = [*folder.iterdir(), *(folder / RECORDS).glob("*")]
    return all(path.name == RECORDS or path.name.startswith(_DRIVER) for path in there)


def run(
    folder: Path,
    jobs: Sequence[Job],
    task: Task,
    cluster: Cluster,
    outcome: Callable[[Status], str],
    draw: Callable[[Job, Mapping[str, Status]], Job] | None = None,
    retry_failed: bool = False,
) -> dict[str, Status]:
    """Does the jobs that are not done yet; returns when none is left to do.

    Args:
        folder: of the study or sweep; the caller is :func:`alone` in it.
        task: does a job, in another process: it must be picklable.
        outcome: a job that is done in a few words, for the line that says so.
        draw: completes a job that is about to begin for the first time. Then no more jobs begin than the cluster has
            room for at the moment: the later one is drawn, the more is known.
        retry_failed: jobs that have failed are done again, with what was drawn for them.

    Raises:
        ValueError: no machine has the GPUs that a job is to have. RuntimeError: Ray has ended.
        KeyboardInterrupt: Ctrl-C, or SIGTERM.
    """
    records = Records(folder)
    running: dict[Any, Job] = {}
    with contextlib.ExitStack() as stack:
        progress = Progress(str(folder), outcome)
        stack.callback(progress.close)
        status = records.status(jobs)
        if retry_failed:
            records.forget(name for name, job in status.items() if job.state == FAILED)
            status = records.status(jobs)
        progress.show(status)
        if not any(can_start(job, status) for job in status.values()):
            return status
        stack.enter_context(_interruptible(folder))
        ray = stack.enter_context(_ray(cluster))
        gpus = _gpus(ray, cluster)
        submit = _submitter(ray, cluster, gpus, task, folder)
        while True:
            status = records.status(jobs, (job.name for job in running.values()))
            progress.show(status)
            most = _most(ray, cluster, gpus, None if draw else len(jobs))
            if not running and not any(can_start(job, status) for job in status.values()):
                return status
            for job in jobs:
                if len(running) < most and can_start(status[job.name], status):
                    begun = _begun(job, records, status, draw)
                    running[submit(begun)] = begun
                    spec = {**begun.spec, **begun.drawn}
                    status[job.name] = replace(status[job.name], spec=spec, state=RUNNING)
            _check(ray)
            for ended in ray.wait(list(running), num_returns=1, timeout=_LOOK_SECONDS)[0]:
                _see_to(ray, ended, running.pop(ended), records)


def _check(ray: Any) -> None:
    """RuntimeError where no machine is left: Ray itself would wait for one to come."""
    if not any(node["Alive"] for node in ray.nodes()):
        raise RuntimeError("Ray has ended: no machine is left; start the same command again")


def _begun(job: Job, records: Records, status: Mapping[str, Status], draw: Callable[..., Job] | None) -> Job:
    """The job with what was drawn for it, now or when it was begun before."""
    record = records.read(job.name)
    if record is not None:
        return Job(job.name, job.spec, job.needs, record["drawn"])
    job = draw(job, status) if draw else job
    records.begin(job)
    return job


def _see_to(ray: Any, ended: Any, job: Job, records: Records) -> None:
    """Notes the end of a job that could not do so itself."""
    try:
        is_done = ray.get(ended)
    except ray.exceptions.RayError as error:  # its worker has died again and again, or could not begin
        if type(error).__name__ in _ENDED:  # no fault of the job, which waits for the next driver
            raise
        if not records.is_over(job.name):  # it may have died on its way out
            records.end(job, Status(job.name, job.spec, state=FAILED, reason=_reason(error)))
    else:
        if not is_done:
            sys.stderr.write(f"{job.name}: another process still works on it, of a driver before this one; it waits\n")


def _reason(error: Exception) -> str:
    if type(error).__name__ in {"WorkerCrashedError", "NodeDiedError"}:
        return f"its worker has died, {_MAX_DEATHS} times"
    return f"{type(error).__name__}: {in_line(error)[:300]}"


# ---- Ray -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _ray(cluster: Cluster) -> Iterator[Any]:
    """Ray, joined or started; left, or ended with all that it runs."""
    is_local = cluster.address is None
    settings = {**_QUIET, **(_LOCAL if is_local else {})}
    if is_local and "RAY_AUTH_MODE" not in os.environ:
        settings["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ |= {name: value for name, value in settings.items() if name not in os.environ}
    import ray

    with contextlib.ExitStack() as stack:
        where: dict[str, Any] = {"address": cluster.address}
        if is_local:
            # A short path, for sockets, and off /dev/shm, which is small in containers: no objects go through Ray.
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
            )
            where = {"address": "local", "num_cpus": cluster.workers or 1, "include_dashboard": False}
            where |= {"object_store_memory": _OBJECTS, "_temp_dir": folder, "_plasma_directory": folder}
        # Ray puts the current folder on the workers' path, where a checkout would hide the package that is installed.
        before = Path.cwd()
        os.chdir("/")
        stack.callback(ray.shutdown)
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except SystemExit:  # a SIGTERM: Ray has put a handler of its own in the place of ours
            raise KeyboardInterrupt from None
        finally:
            os.chdir(before)
        _hear_sigterm()
        try:
            yield ray
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"Ray has ended: {in_line(error)[:300]}") from error


def _gpus(ray: Any, cluster: Cluster) -> float:
    """How many GPUs a job gets; refused where it would wait for them for ever."""
    of_nodes = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
    total, most = float(sum(of_nodes)), max(of_nodes, default=0)
    gpus = cluster.gpus_per_run
    if gpus is None:
        if cluster.address and total:
            raise ValueError(
                f"--gpus-per-run: the cluster at {cluster.address} has {total:g} GPUs; say how many a run gets, or 0"
            )
        own = total / (cluster.workers or 1)
        return own if own < 1 else int(own)
    if gpus > most:
        found = f"--gpus-per-run {gpus:g}: no machine has so many, the largest has {most:g}"
        if not cluster.address:
            raise ValueError(f"{found}; ask for fewer")
        sys.stderr.write(f"{found}; runs wait until one joins the cluster\n")
    return gpus


def _most(ray: Any, cluster: Cluster, gpus: float, jobs: int | None) -> int:
    """How many jobs are given to Ray at once, all at most (``jobs``; None: as many as there is room for)."""
    if cluster.workers or not cluster.address:
        return cluster.workers or 1
    if jobs is not None:
        return jobs
    there = ray.cluster_resources()
    room = min(there.get("CPU", 0), there.get("GPU", 0) / gpus if gpus else float("inf"))
    return max(1, int(room))


def _submitter(ray: Any, cluster: Cluster, gpus: float, task: Task, folder: Path) -> Callable[[Job], Any]:
    import torch

    workers = cluster.workers or 1
    variables = {name: os.environ[name] for name in (*_VARIABLES, _THREADS) if name in os.environ}
    threads = torch.get_num_threads()
    if _THREADS not in os.environ:  # else what is said there holds for each
        threads = _CLUSTER_THREADS if cluster.address else max(1, threads // workers)
    place = Place(folder.absolute(), os.getcwd(), threads, variables)  # noqa: PTH109 Path.cwd() follows links
    # Where there are GPUs, a process does one job: an error of CUDA stays in it.
    calls = 1 if ray.cluster_resources().get("GPU") else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=_MAX_DEATHS - 1, max_calls=calls)(do)
    return lambda job: remote.options(name=job.name).remote(task, job, place)


@contextlib.contextmanager
def _interruptible(folder: Path) -> Iterator[None]:
    """SIGTERM, by which a cluster's scheduler asks a job to stop, is Ctrl-C. Either says how to go on."""
    before = signal.getsignal(signal.SIGTERM)
    is_ours = _hear_sigterm()
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"\nstopped; the same command goes on in {folder}\n")
        raise
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, before)


def _hear_sigterm() -> bool:
    """Whether it could be done: signals are the main thread's."""
    if threading.current_thread() is not threading.main_thread():
        return False
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return True
