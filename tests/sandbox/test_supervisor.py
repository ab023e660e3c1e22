"""The supervisor: order, readiness, restarts, failure, and leaving nothing behind however it ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from asyncstageout.sandbox import children
from asyncstageout.sandbox.outages import NoSuchService, outage
from asyncstageout.sandbox.service import ReadyCheck, Service
from asyncstageout.sandbox.state import (
    AlreadyRunning,
    Phase,
    PlatformStatus,
    ServiceState,
    ServiceStatus,
    has_supervisor,
    read_status,
    sole_supervisor,
)
from asyncstageout.sandbox.supervisor import Supervisor, end_leftovers

DEADLINE_S = 30
DIARY = 'echo "+$0" >> diary; trap \'echo "-$0" >> diary; exit 0\' TERM; sleep 1000 & wait $!'
"""Writes when it starts and stops. Its ``sleep`` is orphaned by the trap: somebody must clean up."""


def diarist(folder: Path, name: str, *needs: str) -> Service:
    def has_started(_: datetime) -> bool:
        return f"+{name}" in read_diary(folder)

    return Service(
        name, ("sh", "-c", DIARY, name), needs, options={"cwd": folder}, is_ready=asynchronous(has_started)
    )


def asynchronous(check: Callable[[datetime], bool]) -> ReadyCheck:
    async def is_ready(started_at: datetime) -> bool:
        return check(started_at)

    return is_ready


def read_diary(folder: Path) -> list[str]:
    diary = folder / "diary"
    return diary.read_text().split() if diary.exists() else []


def supervisor_of(folder: Path, *services: Service) -> Supervisor:
    return Supervisor(
        services, state_file=folder / "state.json", logs_dir=folder, backoff_s=(0.01,), health_pause_s=0.02
    )


def seen(folder: Path) -> PlatformStatus:
    status = read_status(folder / "state.json")
    assert status is not None
    return status


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE  # nobody has asked for its exit code yet
    except psutil.NoSuchProcess:
        return True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def run_while(folder: Path, supervisor: Supervisor, story: Callable[[], Awaitable[None]]) -> int:
    """Run the supervisor; when all is ready, tell the story; then stop it."""
    running = asyncio.create_task(supervisor.run())
    await until(lambda: (folder / "state.json").exists() and seen(folder).phase is Phase.RUNNING)
    try:
        await story()
    finally:
        supervisor.stop()
    return await asyncio.wait_for(running, DEADLINE_S)


async def nothing_to_tell() -> None: ...


def test_services_start_after_what_they_need_and_stop_before_it(tmp_path: Path) -> None:
    services = [
        diarist(tmp_path, "roof", "walls"),
        diarist(tmp_path, "walls", "ground"),
        diarist(tmp_path, "ground"),
    ]
    code = asyncio.run(run_while(tmp_path, supervisor_of(tmp_path, *services), nothing_to_tell))
    assert code == 0
    assert read_diary(tmp_path) == ["+ground", "+walls", "+roof", "-roof", "-walls", "-ground"]
    assert seen(tmp_path).phase is Phase.STOPPED
    assert {service.state for service in seen(tmp_path).services} == {ServiceState.STOPPED}


def test_an_outage_keeps_a_service_down_until_it_is_over(tmp_path: Path) -> None:
    async def story() -> None:
        with outage(tmp_path / "state.json", "fts"):
            await until(lambda: seen(tmp_path).service("fts").state is ServiceState.OUTAGE)
            assert read_diary(tmp_path) == ["+fts"]
        await until(lambda: read_diary(tmp_path) == ["+fts", "+fts"])
        await until(lambda: seen(tmp_path).service("fts").state is ServiceState.READY)

    assert asyncio.run(run_while(tmp_path, supervisor_of(tmp_path, diarist(tmp_path, "fts")), story)) == 0
    with (
        pytest.raises(NoSuchService, match="no service ftp runs here; there are fts"),
        outage(tmp_path / "state.json", "ftp"),
    ):
        pass


def test_stopping_leaves_no_process(tmp_path: Path) -> None:
    family: list[psutil.Process] = []

    async def remember_the_family() -> None:
        pid = seen(tmp_path).service("one").pid
        await until(lambda: len(children.family(pid or 0)) == 2)
        family.extend(children.family(pid or 0))

    asyncio.run(run_while(tmp_path, supervisor_of(tmp_path, diarist(tmp_path, "one")), remember_the_family))
    asyncio.run(until(lambda: all(has_ended(process) for process in family)))


def test_a_step_runs_once_and_lets_others_go_on(tmp_path: Path) -> None:
    step = Service("step", ("sh", "-c", "echo +step >> diary"), options={"cwd": tmp_path}, once=True)
    asyncio.run(
        run_while(tmp_path, supervisor_of(tmp_path, step, diarist(tmp_path, "one", "step")), nothing_to_tell)
    )
    assert read_diary(tmp_path)[:2] == ["+step", "+one"]


def test_a_service_that_dies_is_started_again_and_its_orphans_end(tmp_path: Path) -> None:
    async def kill_it() -> None:
        pid = seen(tmp_path).service("one").pid
        assert pid is not None
        await until(lambda: len(children.family(pid)) == 2)
        head, orphan = children.family(pid)
        head.kill()
        await until(lambda: seen(tmp_path).service("one").restarts == 1 and seen(tmp_path).is_healthy)
        assert seen(tmp_path).service("one").pid != pid
        await until(lambda: has_ended(orphan))

    asyncio.run(run_while(tmp_path, supervisor_of(tmp_path, diarist(tmp_path, "one")), kill_it))


def test_a_failing_step_stops_everything_and_says_why(tmp_path: Path) -> None:
    step = Service("step", ("sh", "-c", "echo the disk is full >&2; exit 3"), needs=("one",), once=True)
    code = asyncio.run(supervisor_of(tmp_path, diarist(tmp_path, "one"), step).run())
    assert code == 1
    assert read_diary(tmp_path) == ["+one", "-one"]
    status = seen(tmp_path)
    assert status.phase is Phase.FAILED
    assert status.service("step").state is ServiceState.FAILED
    assert "step ended with code 3" in (status.problem or "")
    assert "the disk is full" in (status.problem or "")


def test_a_service_that_is_never_ready_fails_after_three_tries(tmp_path: Path) -> None:
    deaf = Service("deaf", ("sleep", "1000"), is_ready=asynchronous(lambda _: False), ready_timeout_s=0.05)
    assert asyncio.run(supervisor_of(tmp_path, deaf).run()) == 1
    assert "was not ready after" in (seen(tmp_path).problem or "")
    assert seen(tmp_path).service("deaf").restarts == 2


def test_a_command_that_does_not_exist_is_a_failed_service(tmp_path: Path) -> None:
    assert asyncio.run(supervisor_of(tmp_path, Service("ghost", ("/nowhere/ghost",))).run()) == 1
    assert "could not be started" in (seen(tmp_path).problem or "")


def test_a_service_that_stops_answering_is_unhealthy_until_it_answers_again(tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    answers.touch()
    service = Service("one", ("sleep", "1000"), is_ready=asynchronous(lambda _: answers.exists()))

    async def fall_silent_and_speak() -> None:
        answers.unlink()
        await until(lambda: seen(tmp_path).service("one").state is ServiceState.UNHEALTHY)
        assert not seen(tmp_path).is_healthy
        answers.touch()
        await until(lambda: seen(tmp_path).is_healthy)

    asyncio.run(run_while(tmp_path, supervisor_of(tmp_path, service), fall_silent_and_speak))


LONELY = """
import asyncio, sys
from pathlib import Path
from asyncstageout.sandbox.service import Service
from asyncstageout.sandbox.supervisor import Supervisor
folder = Path(sys.argv[1])
service = Service("one", ("sleep", "1000"))
asyncio.run(Supervisor([service], state_file=folder / "state.json", logs_dir=folder).run())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise is Linux's")
def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    supervisor = subprocess.Popen([sys.executable, "-c", LONELY, str(tmp_path)])

    async def is_up() -> None:
        await until(lambda: (tmp_path / "state.json").exists() and seen(tmp_path).phase is Phase.RUNNING)

    asyncio.run(is_up())
    child = psutil.Process(seen(tmp_path).service("one").pid)
    supervisor.kill()
    supervisor.wait(DEADLINE_S)
    asyncio.run(until(lambda: has_ended(child)))


def test_leftovers_are_ended_and_strangers_with_their_pid_are_not(tmp_path: Path) -> None:
    leftover, stranger = (subprocess.Popen(["sleep", "1000"]) for _ in range(2))
    created_at_s = children.created_at_s(leftover.pid)
    assert created_at_s is not None
    status = PlatformStatus(
        phase=Phase.RUNNING,
        pid=1,
        started_at=datetime.now(UTC),
        services=[
            ServiceStatus(name="ours", log=tmp_path, pid=leftover.pid, created_at_s=created_at_s),
            ServiceStatus(name="reused", log=tmp_path, pid=stranger.pid, created_at_s=created_at_s - 3600),
        ],
    )
    try:
        end_leftovers(status)
        assert children.same_process(leftover.pid, created_at_s) is None
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_one_platform_has_one_supervisor(tmp_path: Path) -> None:
    lock = tmp_path / "run" / "lock"
    lock.parent.mkdir()
    assert not has_supervisor(lock)
    with sole_supervisor(lock):
        assert has_supervisor(lock)
        with pytest.raises(AlreadyRunning), sole_supervisor(lock):
            pytest.fail("two supervisors")
    assert not has_supervisor(lock)


def test_the_state_file_is_plain_json(tmp_path: Path) -> None:
    asyncio.run(run_while(tmp_path, supervisor_of(tmp_path, diarist(tmp_path, "one")), nothing_to_tell))
    assert json.loads((tmp_path / "state.json").read_text())["phase"] == "stopped"
