"""Starts services in the order of their needs, keeps them alive, and leaves nothing behind when it stops.

``python -m asyncstageout.sandbox.supervisor`` is the one detached process of the embedded platform. It forks
from one thread: the kernel's "tell me when my parent dies" is bound to the thread that forked.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from asyncstageout.sandbox import children
from asyncstageout.sandbox.layout import Layout
from asyncstageout.sandbox.outages import forget_outages, outage_file
from asyncstageout.sandbox.service import Service
from asyncstageout.sandbox.services import platform_services
from asyncstageout.sandbox.state import (
    Phase,
    PlatformStatus,
    ServiceState,
    ServiceStatus,
    read_status,
    sole_supervisor,
    tail,
    write_status,
)

log = logging.getLogger(__name__)

CHECK_PAUSE_S = 0.1
HEALTH_PAUSE_S = 15.0
FIRST_TRIES = 3
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_S = 60.0
"""A service that ran this long before it died starts again without delay."""
LOG_LIMIT_BYTES = 20_000_000


class ServiceFailed(Exception):
    """A service did not get up. The message ends with the last lines of its log."""

    def __init__(self, name: str, reason: str, log_file: Path) -> None:
        super().__init__(f"{name} {reason}. The end of {log_file}:\n{tail(log_file)}")
        self.name = name
        self.reason = reason
        self.log_file = log_file


class _ToldToStop(Exception):
    """SIGTERM or SIGINT arrived."""


class Supervisor:
    """Looks after ``services``, and writes what it sees to ``state_file`` whenever it changes."""

    def __init__(
        self,
        services: Sequence[Service],
        *,
        state_file: Path,
        logs_dir: Path,
        backoff_s: Sequence[float] = BACKOFF_S,
        health_pause_s: float = HEALTH_PAUSE_S,
    ) -> None:
        self._services = {service.name: service for service in services}
        self._state_file = state_file
        self._logs_dir = logs_dir
        self._backoff_s = backoff_s
        self._health_pause_s = health_pause_s
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._ready = {name: asyncio.Event() for name in self._services}
        self._stop = asyncio.Event()
        self._status = PlatformStatus(
            phase=Phase.STARTING,
            pid=os.getpid(),
            started_at=datetime.now(UTC),
            services=[
                ServiceStatus(name=service.name, port=service.port, log=logs_dir / f"{service.name}.log")
                for service in services
            ],
        )

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT, or until a service cannot be started. Returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop)
        self._write()
        problem: ServiceFailed | None = None
        try:
            await self._keep_all()
        except* _ToldToStop:
            log.info("told to stop")
        except* ServiceFailed as failed:
            problem = next(_leaves(failed))
        finally:
            await self._stop_all(problem)
        return 1 if problem else 0

    def stop(self) -> None:
        """Ask :meth:`run` to end."""
        self._stop.set()

    async def _keep_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for service in self._services.values():
                group.create_task(self._keep(service), name=service.name)
            group.create_task(self._announce_ready())
            group.create_task(self._watch_health())
            group.create_task(self._until_told_to_stop())

    async def _until_told_to_stop(self) -> None:
        await self._stop.wait()
        raise _ToldToStop

    async def _announce_ready(self) -> None:
        for event in self._ready.values():
            await event.wait()
        self._status.phase = Phase.RUNNING
        self._status.ready_at = datetime.now(UTC)
        self._write()

    async def _keep(self, service: Service) -> None:
        """Keep one service alive; for a step, see it through."""
        for need in service.needs:
            await self._ready[need].wait()
        failures = 0
        while True:
            begun = time.monotonic()
            reason = await self._live_once(service)
            if reason is None:
                return
            failures = 1 if time.monotonic() - begun > STEADY_S else failures + 1
            self._reap(service)
            if not self._ready[service.name].is_set() and (service.once or failures >= FIRST_TRIES):
                raise ServiceFailed(service.name, reason, self._log_of(service))
            log.warning("%s %s, starting it again", service.name, reason)
            status = self._note(service, ServiceState.RESTARTING, pid=None, created_at_s=None, problem=reason)
            status.restarts += 1
            await asyncio.sleep(self._backoff_s[min(failures, len(self._backoff_s)) - 1])
            await self._outage_over(service)

    async def _outage_over(self, service: Service) -> None:
        file = outage_file(self._state_file.parent, service.name)
        if file.exists():
            self._note(service, ServiceState.OUTAGE, problem="kept down on purpose")
        while file.exists():
            await asyncio.sleep(CHECK_PAUSE_S)

    async def _live_once(self, service: Service) -> str | None:
        """Run the process until it ends. Returns why it ended, or None for a step that did its work."""
        process = await self._spawn(service)
        ending = asyncio.create_task(process.wait())
        if not service.once:
            if not await self._becomes_ready(service, ending):
                await self._end(service, process)
                return f"was not ready after {service.ready_timeout_s:.0f} s"
            if not ending.done():
                self._reached(service, ServiceState.READY)
        code = await ending
        if service.once and code == 0:
            self._reached(service, ServiceState.DONE, pid=None, created_at_s=None)
            return None
        return f"ended with code {code}"

    async def _becomes_ready(self, service: Service, ending: asyncio.Task[int]) -> bool:
        """Wait until the service is ready or has ended; False when neither comes in time."""
        try:
            async with asyncio.timeout(service.ready_timeout_s):
                while not ending.done() and not await self._is_ready(service):
                    await asyncio.wait({ending}, timeout=CHECK_PAUSE_S)
        except TimeoutError:
            return False
        return True

    def _reached(self, service: Service, state: ServiceState, **facts: object) -> None:
        self._note(service, state, ready_at=datetime.now(UTC), problem=None, **facts)
        self._ready[service.name].set()

    async def _is_ready(self, service: Service) -> bool:
        created_at_s = self._status.service(service.name).created_at_s
        if service.is_ready is None or created_at_s is None:
            return service.is_ready is None
        return await service.is_ready(datetime.fromtimestamp(created_at_s, UTC))

    async def _spawn(self, service: Service) -> asyncio.subprocess.Process:
        if service.before_start is not None:
            service.before_start()
        try:
            with self._log_of(service).open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *service.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=service.environment,
                    start_new_session=True,
                    preexec_fn=children.die_with_parent(service.stop_signal),
                    **service.options,
                )
        except OSError as error:
            raise ServiceFailed(
                service.name, f"could not be started: {error}", self._log_of(service)
            ) from error
        self._running[service.name] = process
        created_at_s = children.created_at_s(process.pid)
        self._note(service, ServiceState.STARTING, pid=process.pid, created_at_s=created_at_s)
        return process

    def _reap(self, service: Service) -> None:
        """Kill what a dead service left in its process group, so that its port and its locks are free."""
        try:
            os.killpg(self._running[service.name].pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(self._health_pause_s)
            for service in self._services.values():
                await self._check_health(service)

    async def _check_health(self, service: Service) -> None:
        if self._status.service(service.name).state not in (ServiceState.READY, ServiceState.UNHEALTHY):
            return
        healthy = await self._is_ready(service)
        status = self._status.service(service.name)
        state = ServiceState.READY if healthy else ServiceState.UNHEALTHY
        # It may have died while it was asked.
        if status.state in (ServiceState.READY, ServiceState.UNHEALTHY) and state is not status.state:
            log.warning("%s is %s", service.name, state)
            self._note(service, state)

    async def _stop_all(self, problem: ServiceFailed | None) -> None:
        self._status.phase = Phase.STOPPING
        if problem is not None:
            log.error("%s", problem)
            self._status.problem = str(problem)
            self._note(self._services[problem.name], ServiceState.FAILED, problem=problem.reason)
        self._write()
        stopped = {name: asyncio.Event() for name in self._services}
        await asyncio.gather(
            *(self._stop_after_dependents(service, stopped) for service in self._services.values())
        )
        self._status.phase = Phase.FAILED if problem else Phase.STOPPED
        self._write()

    async def _stop_after_dependents(self, service: Service, stopped: Mapping[str, asyncio.Event]) -> None:
        for other in self._services.values():
            if service.name in other.needs:
                await stopped[other.name].wait()
        process = self._running.get(service.name)
        if process is not None and process.returncode is None:
            await self._end(service, process)
        status = self._status.service(service.name)
        if status.state is not ServiceState.FAILED:
            self._note(service, ServiceState.STOPPED, pid=None, created_at_s=None)
        stopped[service.name].set()

    async def _end(self, service: Service, process: asyncio.subprocess.Process) -> None:
        """Ask the process to end, wait, then kill what is left of it and of all that it started."""
        # Before the signal: an orphan no longer tells whose it was, and tasks leave the process group.
        family = children.family(process.pid)
        for head in family[:1]:
            children.send(head, service.stop_signal)
        try:
            async with asyncio.timeout(service.stop_timeout_s):
                await process.wait()
        except TimeoutError:
            log.warning("%s did not stop within %.0f s, killing it", service.name, service.stop_timeout_s)
            process.kill()
            await process.wait()
        for other in family[1:]:
            children.send(other, signal.SIGKILL)

    def _log_of(self, service: Service) -> Path:
        return self._logs_dir / f"{service.name}.log"

    def _note(self, service: Service, state: ServiceState, **facts: object) -> ServiceStatus:
        status = self._status.service(service.name)
        status.state = state
        for name, value in facts.items():
            setattr(status, name, value)
        self._write()
        return status

    def _write(self) -> None:
        write_status(self._state_file, self._status)


def end_leftovers(status: PlatformStatus | None) -> None:
    """End what a supervisor that was killed left behind. A pid that was reused since is left alone."""
    for service in reversed(status.services if status else []):
        process = children.same_process(service.pid, service.created_at_s)
        if process is not None:
            log.warning("%s (pid %s) outlived its supervisor, ending it", service.name, process.pid)
            children.end(children.family(process.pid), signal.SIGTERM, timeout_s=10)


def main() -> int:
    """Be the supervisor of the platform that ``ASO_HOME`` names."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    layout = Layout.load()
    layout.prepare()
    with sole_supervisor(layout.lock_file), ExitStack() as held:
        end_leftovers(read_status(layout.state_file))
        forget_outages(layout.run)
        layout = held.enter_context(layout.with_claimed_ports())
        _rotate(layout.logs)
        services = platform_services(layout)
        supervisor = Supervisor(services, state_file=layout.state_file, logs_dir=layout.logs)
        return asyncio.run(supervisor.run())


def _rotate(logs: Path) -> None:
    for path in logs.glob("*.log"):
        if path.stat().st_size > LOG_LIMIT_BYTES:
            path.replace(path.with_suffix(".log.1"))


def _leaves(group: BaseExceptionGroup[ServiceFailed]) -> Iterator[ServiceFailed]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


if __name__ == "__main__":
    sys.exit(main())
