"""One run on several processes: how they meet, and what one of them does for all.

Every host starts the same command; `connect` finds the others before JAX starts. JAX ends a process that cannot reach
its coordinator by an abort, so processes that are told where to meet do so here first, within a bounded time, and say
in one line who is missing. What JAX detects by itself (Cloud TPU, GKE, Slurm, Open MPI) is left to JAX.
"""

import contextlib
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from codegen2_jax.errors import UserError

MODES = ("auto", "on", "off")
HEARTBEAT_SECONDS = 30  # a process that was silent for so long is dead, and the others end; JAX waits 100 by default
SHUTDOWN_SECONDS = 60
WAIT_SECONDS = 7 * 24 * 3600  # for what process 0 does alone, such as making a cache; its death ends the wait at once
ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# What mpirun tells a process: how many there are, and its number. Open MPI 4 says where to meet too, others do not.
MPI = (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK"))

_calls = itertools.count()  # all processes make the same calls in the same order


class Meeting(NamedTuple):
    """Where processes meet; None: as JAX detects it."""

    address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def connect(mode: str, meeting: Meeting, *, timeout: int = 300) -> None:
    """Joins the other processes of the run; must come before JAX touches a device.

    Args:
      mode: "off" for one process; "on" for several, or an error; "auto" for several where `meeting` or the variables
        JAX_... say so or where JAX detects a cluster, otherwise one.
      timeout: seconds to wait for the others.

    Raises UserError when a setting is missing or wrong and when not all processes come in time.
    """
    if mode not in MODES:
        raise UserError(f"--distributed={mode} is unknown; choose one of {', '.join(MODES)}.")
    if timeout < 1:
        raise UserError(f"--connect_timeout={timeout} is no time to wait; give seconds, 300 is usual.")
    if mode == "off":
        if any(value is not None for value in meeting):
            raise UserError("--distributed=off is one process; leave out --coordinator_address and its like.")
        return
    meeting = _completed(meeting)
    if meeting == Meeting() and _launched_alone():
        if mode == "on":
            raise UserError("--distributed=on, but srun or mpirun started one process; start several, or leave it out.")
        return  # JAX would show it one device of the host, as the first of several
    given = [value is not None for value in meeting]
    if any(given) and not all(given):
        names = ("--coordinator_address", "--num_processes", "--process_id")
        missing = ", ".join(name for name, there in zip(names, given, strict=True) if not there)
        raise UserError(f"{missing} is missing; give all three of {', '.join(names)}, or none where a cluster tells.")
    if all(given):
        _check(meeting)
        _meet(meeting, timeout)
    _initialize(mode, meeting, timeout)


def _completed(meeting: Meeting) -> Meeting:
    """What flags leave open, from the environment."""
    address, *numbers = (os.environ.get(name) for name in ENVIRONMENT)
    for name, text in zip(ENVIRONMENT[1:], numbers, strict=True):
        if text is not None and not text.isdecimal():
            raise UserError(f"the environment variable {name}={text!r} is no whole number.")
    found = (address, *(None if text is None else int(text) for text in numbers))
    meeting = Meeting(*(theirs if ours is None else ours for ours, theirs in zip(meeting, found, strict=True)))
    if meeting.address is not None and meeting[1:] == (None, None):
        return meeting._replace(**dict(zip(("num_processes", "process_id"), _of_mpi() or (None, None), strict=True)))
    return meeting


def _of_mpi() -> tuple[int, int] | None:
    """(number of processes, number of this one) as mpirun tells it; None where there is none."""
    for names in MPI:
        told = [os.environ.get(name, "") for name in names]
        if all(text.isdecimal() for text in told):
            return int(told[0]), int(told[1])
    return None


def _launched_alone() -> bool:
    """Whether a launcher started just this process, such as a shell that srun opened on a host with many devices."""
    slurm = "SLURM_STEP_NODELIST" in os.environ and os.environ.get("SLURM_NTASKS") == "1"
    mpi = _of_mpi()
    return slurm or (mpi is not None and mpi[0] == 1)


def _check(meeting: Meeting) -> None:
    host, colon, port = meeting.address.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator_address={meeting.address} is no address; write HOST:PORT of process 0.")
    if meeting.num_processes < 1:
        raise UserError(f"--num_processes={meeting.num_processes} must be at least 1.")
    if not 0 <= meeting.process_id < meeting.num_processes:
        raise UserError(
            f"--process_id={meeting.process_id} must lie in 0 to {meeting.num_processes - 1}, one below "
            f"--num_processes={meeting.num_processes}."
        )


def _initialize(mode: str, meeting: Meeting, timeout: int) -> None:
    import jax

    try:
        jax.distributed.initialize(
            *meeting,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError, TypeError, OSError) as error:
        text = " ".join(str(error).split())
        if "should be defined" in text and meeting.address is None:
            mpi = _of_mpi()
            if mpi is not None:
                raise UserError(
                    f"mpirun started {mpi[0]} processes and does not say where they meet, as Open MPI 4 does; give "
                    "--coordinator_address=HOST:PORT of the first, or --distributed=off for runs of one process."
                ) from None
            if mode == "on":
                raise UserError(
                    "--distributed=on, but no cluster was detected; give --coordinator_address=HOST:PORT, "
                    "--num_processes=N and --process_id=I."
                ) from None
            return
        if mode == "auto" and meeting.address is None and "must be called before" in text:
            return  # a program that has used JAX already has connected by itself, or runs alone
        raise UserError(f"the processes did not connect: {text[:300]}; --distributed=off runs one alone.") from error


# ------------------------------------------------------------------------------------------------------- the meeting


def _meet(meeting: Meeting, timeout: int) -> None:
    """Waits until all processes are there; raises UserError where they are not, or disagree."""
    host, _, port = meeting.address.rpartition(":")
    until = time.monotonic() + timeout
    if meeting.num_processes == 1:
        return
    if meeting.process_id == 0:
        _receive(meeting, int(port), until, timeout)
    else:
        _report(meeting, (host.strip("[]"), int(port)), until, timeout)


def _receive(meeting: Meeting, port: int, until: float, timeout: int) -> None:
    """Process 0: hears of every other one and tells all of them to go on, or why not."""
    try:
        listener = socket.create_server(("", port), backlog=meeting.num_processes)
    except OSError as error:
        raise UserError(f"port {port} of --coordinator_address is not free on process 0: {error.strerror}.") from error
    there: set[int] = set()
    connections: list[socket.socket] = []
    trouble = ""
    with listener, contextlib.ExitStack() as stack:
        while len(there) < meeting.num_processes - 1 and not trouble:
            listener.settimeout(max(0.01, until - time.monotonic()))
            try:
                connection, _ = listener.accept()
                stack.enter_context(connection)
                connection.settimeout(5)
                process_id, num_processes = json.loads(connection.makefile().readline())
            except TimeoutError:
                if time.monotonic() < until:
                    continue
                missing = sorted(set(range(1, meeting.num_processes)) - there)
                trouble = f"processes {missing} of {meeting.num_processes} did not come within {timeout} s"
                break
            except (OSError, ValueError, TypeError):
                continue  # something that is no process of ours
            if num_processes != meeting.num_processes:
                counts = f"{num_processes} processes, process 0 of {meeting.num_processes}"
                trouble = f"process {process_id} was told of {counts}"
            elif process_id in there:
                trouble = f"two processes say --process_id={process_id}"
            there.add(process_id)
            connections.append(connection)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(f"{json.dumps(trouble)}\n".encode())
    if trouble:
        raise UserError(f"{trouble}; start the same command once for each process, numbered from 0.")


def _report(meeting: Meeting, address: tuple[str, int], until: float, timeout: int) -> None:
    """Any other process: finds process 0, says who it is, and waits for its word."""
    while True:
        try:
            with socket.create_connection(address, timeout=max(0.01, until - time.monotonic())) as connection:
                connection.sendall(f"{json.dumps([meeting.process_id, meeting.num_processes])}\n".encode())
                connection.settimeout(max(1.0, until - time.monotonic() + 5))
                trouble = json.loads(connection.makefile().readline())
                break
        except (OSError, ValueError) as error:
            if time.monotonic() > until - 0.5:
                raise UserError(
                    f"the coordinator {meeting.address} cannot be reached within {timeout} s "
                    f"({type(error).__name__}); check the address, the network, and that process 0 was started."
                ) from None
            time.sleep(0.2)
    if trouble:
        raise UserError(f"{trouble}; start the same command once for each process, numbered from 0.")


# -------------------------------------------------------------------------------------------------- together, after


def is_first() -> bool:
    """Whether this is process 0, which speaks and writes for all; wakes no device."""
    if "jax" not in sys.modules:
        return True
    from jax._src import distributed

    return distributed.global_state.process_id == 0


def first_then_others(work: Callable[[], Any]) -> Any:
    """`work()`, on process 0 while the others wait, then on them, who find what it made; the result of this process.

    A UserError of process 0 is raised everywhere. Where the file system is not shared, each makes its own.
    """
    import jax

    if jax.process_count() == 1:
        return work()
    # The service that JAX's own checkpointing library waits with: a collective of the devices would time out.
    from jax._src import distributed

    client, key = distributed.global_state.client, f"codegen2_jax/first/{next(_calls)}"
    if jax.process_index() == 0:
        try:
            result = work()
        except UserError as error:
            client.key_value_set(key, f"error:{error}")
            raise
        client.key_value_set(key, "done")
        return result
    outcome = client.blocking_key_value_get(key, WAIT_SECONDS * 1000)
    if outcome != "done":
        raise UserError(outcome.removeprefix("error:"))
    return work()


def all_agree(facts: Any) -> Any:
    """Whether a fact (bool) holds on every process; of an array of facts, which of them do."""
    import jax

    if jax.process_count() == 1:
        return facts
    import numpy as np
    from jax.experimental import multihost_utils

    return np.all(multihost_utils.process_allgather(np.asarray(facts)), axis=0)


def leave(exit_code: int, *, together: bool) -> None:
    """Ends this process's part in a run of several; nothing in a run of one.

    together: all processes come here, and wait for one another. Otherwise this one ends at once: to wait for others
    that wait for it would be to hang, and they notice.
    """
    if "jax" not in sys.modules:
        return
    import jax

    if not jax.distributed.is_initialized():
        return
    if together:
        jax.distributed.shutdown()
    else:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
