"""How processes meet: in a bounded time, or with one line that says who is missing. No device is touched."""

import concurrent.futures
import socket
import subprocess
import sys
import time

import pytest

from codegen2_jax import processes
from codegen2_jax.errors import UserError
from codegen2_jax.processes import Meeting


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def meet(*members: tuple[int, int], timeout: int = 20) -> list:
    """What each (process_id, num_processes) hears when all come to one address: None, or the error."""
    address = free_address()

    def one(member):
        try:
            return processes._meet(Meeting(address, member[1], member[0]), timeout)
        except UserError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(members)) as threads:
        return list(threads.map(one, members))


def test_all_come_in_any_order():
    assert meet((2, 3), (0, 3), (1, 3)) == [None] * 3


def test_a_missing_process_is_named_to_all():
    found = meet((0, 4), (2, 4), timeout=1)
    assert all("processes [1, 3] of 4 did not come within 1 s" in text for text in found)


def test_numbers_that_disagree_are_named_to_all():
    assert all("process 1 was told of 3 processes, process 0 of 2" in text for text in meet((0, 2), (1, 3)))
    assert all("two processes say --process_id=1" in text for text in meet((0, 3), (1, 3), (1, 3)))


def test_a_coordinator_that_is_not_there_is_given_up():
    (text,) = meet((1, 2), timeout=1)
    assert "the coordinator 127.0.0.1:" in text and "cannot be reached within 1 s" in text


def test_a_port_that_is_taken_is_said():
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match="of --coordinator_address is not free on process 0"):
            processes._meet(Meeting(address, 2, 0), 1)


def test_strangers_at_the_door_are_not_counted():
    address = free_address()
    host, port = address.split(":")
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        first = threads.submit(processes._meet, Meeting(address, 2, 0), 20)
        while True:
            try:
                with socket.create_connection((host, int(port)), timeout=1) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\n")
                break
            except ConnectionError:  # the door is not open yet; closed for good once the first has given up
                assert not first.done()
                time.sleep(0.01)
        second = threads.submit(processes._meet, Meeting(address, 2, 1), 20)
        assert first.result() is None and second.result() is None


@pytest.mark.parametrize(
    "mode, meeting, message",
    [
        ("maybe", Meeting(), "--distributed=maybe is unknown; choose one of auto, on, off"),
        ("off", Meeting("h:1", 2, 0), "--distributed=off is one process"),
        ("on", Meeting("h:1", 2, None), "--process_id is missing"),
        ("auto", Meeting(None, 2, 0), "--coordinator_address is missing"),
        ("on", Meeting("host", 2, 0), "--coordinator_address=host is no address; write HOST:PORT"),
        ("on", Meeting("h:1", 2, 2), "--process_id=2 must lie in 0 to 1"),
        ("on", Meeting("h:1", 0, 0), "--num_processes=0 must be at least 1"),
    ],
)
def test_settings_that_are_wrong_are_named_at_once(mode, meeting, message):
    with pytest.raises(UserError, match=message):
        processes.connect(mode, meeting)


def test_the_environment_fills_what_flags_leave_open(monkeypatch):
    for name, value in zip(processes.ENVIRONMENT, ("host:5", "4", "3"), strict=True):
        monkeypatch.setenv(name, value)
    assert processes._completed(Meeting()) == ("host:5", 4, 3)
    assert processes._completed(Meeting(process_id=0)) == ("host:5", 4, 0)
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(UserError, match="JAX_PROCESS_ID='first' is no whole number"):
        processes._completed(Meeting())


def test_one_process_does_its_work_alone():
    assert processes.first_then_others(lambda: 5) == 5
    assert processes.all_agree(True) and not processes.all_agree(False)
    assert processes.is_first()


CLUSTERS = {
    "slurm": {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "{index}",
        "SLURM_LOCALID": "{index}",
        "SLURM_STEP_NUM_NODES": "1",
    },
    "ompi": {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "{index}",
        "OMPI_COMM_WORLD_LOCAL_RANK": "{index}",
    },
}
AUTO = """
from codegen2_jax import processes
processes.connect("auto", processes.Meeting(), timeout=60)
import jax
print(jax.process_index(), jax.process_count(), processes.first_then_others(lambda: "made"), processes.all_agree(True))
processes.leave(0, together=True)
"""


@pytest.mark.parametrize("name", sorted(CLUSTERS))
def test_a_launcher_is_detected(name, program_environment):
    """What srun and mpirun say in the environment is enough, with the port that JAX is told."""
    port = free_address().split(":")[1]
    children = []
    for index in range(2):
        told = {key: value.format(index=index) for key, value in CLUSTERS[name].items()}
        environment = program_environment | told | {"JAX_COORDINATOR_PORT": port}
        line = [sys.executable, "-c", AUTO]
        children.append(subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True))
    printed = [child.communicate(timeout=200)[0] for child in children]
    assert [text.splitlines()[-1] for text in printed] == ["0 2 made True", "1 2 made True"]


MPI_5 = {name: value for name, value in CLUSTERS["ompi"].items() if "orte" not in name}


@pytest.mark.parametrize("names", processes.MPI)
def test_an_mpirun_that_names_no_place_is_asked_for_one(names, program_environment, monkeypatch):
    """Open MPI 5 and MPICH number their processes; without a place each would run alone, into one directory."""
    told = dict(zip(names, ("2", "1"), strict=True))
    done = subprocess.run([sys.executable, "-c", AUTO], env=program_environment | told, capture_output=True, text=True)
    assert "UserError: mpirun started 2 processes" in done.stderr and "give --coordinator_address=HOST" in done.stderr
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert processes._completed(Meeting("host:5")) == ("host:5", 2, 1)
    assert processes._completed(Meeting("host:5", 4, 3)) == ("host:5", 4, 3)


def test_processes_of_mpirun_meet_where_they_are_told(program_environment):
    children = []
    address = free_address()
    for index in range(2):
        told = {key: value.format(index=index) for key, value in MPI_5.items()} | {"JAX_COORDINATOR_ADDRESS": address}
        line = [sys.executable, "-c", AUTO]
        children.append(subprocess.Popen(line, env=program_environment | told, stdout=subprocess.PIPE, text=True))
    printed = [child.communicate(timeout=200)[0] for child in children]
    assert [text.splitlines()[-1] for text in printed] == ["0 2 made True", "1 2 made True"]


@pytest.mark.parametrize("name", sorted(CLUSTERS))
def test_one_process_of_a_launcher_keeps_all_devices(name, program_environment):
    """A shell that srun opened: JAX would show the first device of the host alone."""
    told = {key: value.format(index=0) for key, value in CLUSTERS[name].items()}
    told |= {"SLURM_NTASKS": "1"} if name == "slurm" else {"OMPI_COMM_WORLD_SIZE": "1"}
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    program = AUTO + "print(jax.device_count(), jax.local_device_count())"
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, env=program_environment | told | flags, capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines()[-2:] == ["0 1 made True", "4 4"], done.stderr
    refused = subprocess.run(
        [sys.executable, "-c", AUTO.replace('"auto"', '"on"')],
        env=program_environment | told | flags, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert "started one process" in refused.stderr


def test_where_no_cluster_is_auto_runs_alone_and_on_is_refused(monkeypatch):
    import jax

    def initialize(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    processes.connect("auto", Meeting())
    with pytest.raises(UserError, match="--distributed=on, but no cluster was detected; give --coordinator_addr"):
        processes.connect("on", Meeting())
