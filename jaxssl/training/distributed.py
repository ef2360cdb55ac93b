"""Several processes as one run.

jax's coordination service aborts the process, with a stack trace and without a name, when a host does not come or
stops. So the processes call the roll themselves before (`rollcall`), and watch each other afterwards (`lifeline`).
"""

import atexit
import itertools
import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import clusters, distributed  # the parts of `jax.distributed` that are not public
from jax.experimental import multihost_utils

from compress.errors import InputError
from jaxssl.data.team import ALONE, Team
from jaxssl.storage import fetching, places, publishing
from jaxssl.training.lifeline import LINE, Watch
from jaxssl.training.rollcall import Place, call_roll, connect

PATIENCE_S = 14 * 24 * 3600.0  # for a process that is alive, but has more to do
DAY_S = 86_400.0  # for what waits for a store, which has its own patience
VERDICT_S = 2.0  # a failed collective waits that long to hear whether another process is the cause

_watch: Watch | None = None
_numbers = itertools.count()  # of what the main process said


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout_s: float = 300.0,
    silence_s: float = 30.0,
) -> None:
    """Join the processes of a run; call it before anything else of jax.

    Without the first three arguments the place is read off the machine: TPU pods, SLURM, Open MPI, Kubernetes with
    `jax[k8s]`. A process that is alone has nothing to join. From then on this process ends with code `LOST` and one
    line on standard error when another one dies, fails or hangs.

    Args:
        coordinator: HOST:PORT of process 0; the port must be free there and open to the others.
        processes: how many there are.
        process: which of them this is, from 0.
        timeout_s: how long to wait for the others to come, and at the end for the others to finish.
        silence_s: how long another process may be silent before it counts as hanging.

    Raises:
        InputError: some process did not come in time; the message names it. Or the processes contradict each other.
    """
    global _watch
    place = _place(coordinator, processes, process, timeout_s)
    if place is None or place.processes == 1:
        return
    if place.process:
        publishing.leave()
    links = call_roll(place, timeout_s=timeout_s)
    name = f"process {place.process} of {place.processes}"
    _watch = Watch(name, links, silence_s=silence_s, grace_s=timeout_s)
    _watch.start()
    atexit.register(_watch.finish)  # runs before jax's own end, which waits for the others
    jax.config.update("jax_enable_preemption_service", False)  # it would keep SIGTERM from us
    _go_direct(place)
    jax.distributed.initialize(
        place.coordinator if place.process == 0 else _relay(place),
        place.processes,
        place.process,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=math.ceil(timeout_s),
        heartbeat_timeout_seconds=math.ceil(4 * silence_s),
        shutdown_timeout_seconds=math.ceil(2 * timeout_s),
    )


@contextmanager
def guard() -> Iterator[None]:
    """Stop all the other processes at once when the body of `with` fails in this one."""
    try:
        yield
    except Exception as error:
        if _watch is not None:
            time.sleep(VERDICT_S)  # a collective fails first, the lifeline then says whose fault it was
            first = places.shown(str(error).splitlines()[0] if str(error) else "")[: LINE // 8]
            name = f"process {jax.process_index()} on {socket.gethostname()}"
            code = 2 if isinstance(error, InputError | OSError) else 1
            _watch.fail(f"{name} failed: {type(error).__name__}: {first}", exit_code=code)
        raise


def is_main() -> bool:
    """Return whether this is the process that writes."""
    return jax.process_index() == 0


def barrier(name: str, *, timeout_s: float = 600.0) -> None:
    """Wait until every process has come to the barrier of that name; no device takes part.

    Raises:
        jax.errors.JaxRuntimeError: some process has not come within `timeout_s`.
    """
    if (client := distributed.global_state.client) is not None:
        client.wait_at_barrier(name, round(1000 * timeout_s))


def team(folder: Path) -> Team:
    """Return the processes of this run as those that prepare a corpus in a folder; what they wait for may take days.

    Where the folder is a bucket's, they need no common disk: what each has made is sent when they wait for each other,
    and what the others have made comes.
    """
    if jax.process_count() == 1:
        return ALONE
    url = places.url(folder)
    if url:
        publishing.begin(folder)

    def wait() -> None:
        publishing.now(folder)
        meet(timeout_s=PATIENCE_S)
        if url:
            fetching.bring(url)
            meet(timeout_s=PATIENCE_S)  # before anybody changes again what others still read

    def gather(array: np.ndarray) -> np.ndarray:
        meet(timeout_s=PATIENCE_S)  # a collective on CPUs waits 30 s for the others
        array = np.ascontiguousarray(array)
        if not array.size:
            return np.zeros((jax.process_count(), *array.shape), array.dtype)
        # As bytes: jax would make 64 bits 32.
        raw = multihost_utils.process_allgather(array.reshape(-1).view(np.uint8))
        return np.ascontiguousarray(raw).view(array.dtype).reshape(-1, *array.shape)

    return Team(jax.process_index(), jax.process_count(), wait, gather)


def meet(*, timeout_s: float = DAY_S) -> None:
    """Wait until every process has come here; the how-manieth such place it is must be the same in all.

    Raises:
        jax.errors.JaxRuntimeError: some process has not come within `timeout_s`.
    """
    barrier(f"jaxssl/meet/{next(_numbers)}", timeout_s=timeout_s)


def said(value: Any, *, timeout_s: float = DAY_S) -> Any:
    """Return what the main process gives, JSON values; all must call it, in the same order. No device takes part.

    Raises:
        jax.errors.JaxRuntimeError: it has not come within `timeout_s`.
    """
    if (client := distributed.global_state.client) is None:
        return value
    name = f"jaxssl/said/{next(_numbers)}"
    if is_main():
        client.key_value_set(name, json.dumps(value))
    return json.loads(client.blocking_key_value_get(name, round(1000 * timeout_s)))


def sent(out: Path) -> None:
    """Wait until the bucket of a folder, where it has one, has all of it: a process that left would be missed."""
    if places.url(out):
        if is_main():
            publishing.now(out)
        said(True)


def anywhere(flag: bool) -> bool:
    """Return whether `flag` is true in any process; all must call it, as when one of them is told to stop."""
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag)))) if jax.process_count() > 1 else flag


def _place(coordinator: str | None, processes: int | None, process: int | None, timeout_s: float) -> Place | None:
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return _detect(timeout_s)
    if coordinator is None or processes is None or process is None:
        raise InputError(f"{' and '.join(missing)} not given; give all of {', '.join(given)}, or none to detect them")
    if not coordinator.rpartition(":")[2].isdecimal() or not coordinator.rpartition(":")[0]:
        raise InputError(f"--coordinator {coordinator}: not HOST:PORT, as 10.0.0.1:8476")
    if not 0 <= process < processes:
        raise InputError(f"--process {process} of --processes {processes}: must be from 0 to {processes - 1}")
    return Place(coordinator, processes, process)


def _detect(timeout_s: float) -> Place | None:
    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(timeout_s))
    coordinator, processes, process, devices = found
    if coordinator is None or processes is None or process is None:
        return None
    return Place(coordinator, processes, process, None if devices is None else tuple(np.atleast_1d(devices).tolist()))


def _go_direct(place: Place) -> None:
    """Keep jax's client from looking for the other processes behind an HTTP proxy, where it would hang."""
    name = "no_grpc_proxy"  # gRPC reads it in small letters
    around = os.environ.get(name) or os.environ.get("no_proxy")
    os.environ[name] = ",".join(filter(None, (around, "127.0.0.1", place.address[0])))
    jax.config.update("jax_check_proxy_envs", False)


def _relay(place: Place) -> str:
    """Open a local door to process 0's coordination service, and return its address.

    jax's client aborts with a stack trace the moment its connection closes; behind the door it sees nothing of that,
    and the lifeline, closed at the same moment, says what happened.
    """
    door = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            here = door.accept()[0]
            try:
                there = connect(place.address, time.monotonic() + 10)
            except OSError:
                here.close()  # jax's client tries again
                continue
            there.settimeout(None)
            threading.Thread(target=_pump, args=(here, there), daemon=True).start()
            threading.Thread(target=_pump, args=(there, here), daemon=True).start()

    threading.Thread(target=serve, name="relay", daemon=True).start()
    return f"127.0.0.1:{door.getsockname()[1]}"


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
