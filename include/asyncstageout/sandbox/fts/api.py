"""The REST interface: FTS 3.13's requests and answers over an engine, and the sandbox's own knobs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import unquote_plus

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from asyncstageout.sandbox.faults import FaultPlan
from asyncstageout.sandbox.front import FaultyFront
from asyncstageout.sandbox.fts.delegation import Delegations
from asyncstageout.sandbox.fts.engine import Engine, wire_retries
from asyncstageout.sandbox.fts.identity import Identities, Identity
from asyncstageout.sandbox.fts.records import (
    FILE_ACTIVE,
    JOB_COLUMNS,
    File,
    Job,
    wire_file,
    wire_job,
    wire_time,
)
from asyncstageout.sandbox.fts.refusals import INTERNAL_ERROR, NOT_ALLOWED, NOT_FOUND, Refused
from asyncstageout.sandbox.fts.submission import Rules, build_job
from asyncstageout.sandbox.fts.tokens import FTSTokens, Submitted
from asyncstageout.sandbox.serving import bearer_of, peer_of

T = TypeVar("T")

MAX_PATH_CHARS = 4045
"""109 job ids fit. The front answers a longer path with an HTML 404 (a file name of more than PATH_MAX)."""
MAX_REQUEST_LINE_CHARS = 8190
MAX_JOBS_LISTED = 500
MAX_FILES_LISTED = 1000
SHORTEST_SLEEP_S = 0.002
"""Between two ticks, so that many small events share one."""

_HTML = (
    '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01//EN" "http://www.w3.org/TR/html4/strict.dtd">\n'
    "<html><head>\n<title>{status} {title}</title>\n</head><body>\n<h1>{title}</h1>\n<p>{text}</p>\n"
    "</body></html>\n"
)
_HTML_404 = _HTML.format(
    status=404, title="Not Found", text="The requested URL was not found on this server."
)
_HTML_414 = _HTML.format(
    status=414,
    title="Request-URI Too Long",
    text="The requested URL's length exceeds the capacity\nlimit for this server.<br />\n",
)
_ROOT = {
    "delegation": {"major": 1, "minor": 0, "patch": 0},
    "api": {"major": 3, "minor": 13, "patch": 4},
    "core": None,
    "schema": {"major": 9, "minor": 1, "patch": 0},
    "_links": {
        "curies": [{"name": "fts", "href": "https://gitlab.cern.ch/fts/fts3"}],
        "fts:whoami": {"href": "/whoami", "title": "Check user certificate"},
        "fts:joblist": {
            "href": "/jobs{?vo_name,user_dn,dlg_id,state_in}",
            "title": "List of active jobs",
            "templated": True,
        },
        "fts:job": {
            "href": "/jobs/{id}",
            "title": "Job information",
            "templated": True,
            "hints": {"allow": ["GET", "DELETE"]},
        },
        "fts:configaudit": {"href": "/config/audit", "title": "Configuration"},
        "fts:submitschema": {"href": "/api-docs/schema/submit", "title": "JSON schema of messages"},
        "fts:apidocs": {"href": "/api-docs/", "title": "API Documentation"},
        "fts:jobsubmit": {
            "href": "/jobs",
            "hints": {"allow": ["POST"], "representations": ["fts:submitschema"]},
        },
        "fts:optimizer": {"href": "/optimizer/", "title": "Optimizer"},
        "fts:archive": {"href": "/archive/", "title": "Archive"},
    },
}


class Pulse:
    """Gives the engine its ticks from the event loop: one timer, whatever the number of files."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._timer: asyncio.Handle | None = None
        self._due_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._engine.on_work = self.soon
        self.soon()

    def stop(self) -> None:
        """Stop."""
        self._loop = None
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def soon(self) -> None:
        """Tick soon."""
        self._after(SHORTEST_SLEEP_S)

    def call(self, act: Callable[[], T], deadline_s: float = 20) -> T:
        """Do something on the engine's own thread, from another one, and return its result."""
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(act())
            except BaseException as error:
                result.set_exception(error)
                raise

        if self._loop is None:
            raise RuntimeError("the service does not run")
        self._loop.call_soon_threadsafe(run)
        return result.result(deadline_s)

    def from_thread(self, report: Callable[..., None], *args: object) -> None:
        """Pass what a copying thread reports to the loop; after the end nobody wants to know."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._report, report, args)

    def _report(self, report: Callable[..., None], args: tuple[object, ...]) -> None:
        report(*args)
        self.soon()

    def _after(self, delay_s: float) -> None:
        if self._loop is None:
            return
        due_s = self._loop.time() + delay_s
        if self._timer is None or self._due_s > due_s:
            if self._timer:
                self._timer.cancel()
            # Remembered here: what uvloop gives for a moment that is almost now cannot tell when it is due.
            self._timer, self._due_s = self._loop.call_at(due_s, self._tick), due_s

    def _tick(self) -> None:
        self._timer = None
        due_s = self._engine.tick()
        if due_s is not None:
            self._after(max(SHORTEST_SLEEP_S, due_s - self._engine.now_s))


class JSON(Response):
    """JSON as FTS writes it: compact."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """The handlers, over one engine."""

    def __init__(
        self,
        engine: Engine,
        identities: Identities,
        delegations: Delegations,
        rules: Rules | None = None,
        tokens: FTSTokens | None = None,
    ) -> None:
        self.engine = engine
        self._identities = identities
        self._delegations = delegations
        self._rules = rules or Rules()
        self._tokens = tokens

    def routes(self) -> list[Route]:
        """The paths of FTS, then those of the sandbox."""
        table: tuple[tuple[str, str, Handler], ...] = (
            ("GET", "/", self.root),
            ("GET", "/whoami", self.whoami),
            ("GET", "/delegation/{dlg_id}", self.delegation_view),
            ("DELETE", "/delegation/{dlg_id}", self.delegation_delete),
            ("GET", "/delegation/{dlg_id}/request", self.delegation_request),
            ("PUT POST", "/delegation/{dlg_id}/credential", self.delegation_put),
            ("POST PUT", "/jobs", self.submit),
            ("GET", "/jobs", self.list_jobs),
            ("DELETE", "/jobs/all", self.cancel_everything),
            ("DELETE", "/jobs/vo/{vo}", self.cancel_everything),
            ("GET", "/jobs/{ids}", self.jobs),
            ("DELETE", "/jobs/{ids}", self.cancel),
            ("POST", "/jobs/{ids}", self.modify),
            ("GET", "/jobs/{job_id}/files", self.job_files),
            ("GET", "/jobs/{job_id}/dm", self.job_dm),
            ("DELETE", "/jobs/{job_id}/files/{file_ids}", self.cancel_files),
            ("GET", "/jobs/{job_id}/files/{file_id}/retries", self.retries),
            ("GET", "/jobs/{job_id}/{column}", self.job_column),
            ("GET", "/archive/{job_id}", self.archived),
            ("GET", "/archive/{job_id}/{column}", self.archived_column),
            ("GET", "/files", self.files),
            ("GET", "/ban/se", self.bans),
            ("POST", "/ban/se", self.ban),
            ("DELETE", "/ban/se", self.unban),
            ("GET", "/optimizer/current", self.optimizer),
            ("GET", "/config/global", self.config),
            ("GET", "/sandbox/faults", self.fault_plan),
            ("PUT", "/sandbox/faults", self.put_fault_plan),
            ("GET", "/sandbox/stats", self.stats),
        )
        by_path: dict[str, dict[str, Handler]] = {}
        for methods, path, handler in table:
            by_path.setdefault(path, {}).update(dict.fromkeys(methods.split(), handler))
        return [
            Route(path, _dispatch(by_method), methods=[*by_method]) for path, by_method in by_path.items()
        ]

    # -- who ---------------------------------------------------------------------------------------

    def _user(self, request: Request) -> Identity:
        bearer = bearer_of(request)
        if self._tokens and bearer and (user := self._tokens.caller(bearer)):
            return user
        peer = peer_of(request.scope)
        return self._identities.of(peer.dns, peer.fqans)

    def _authorized(self, request: Request) -> Identity:
        user = self._user(request)
        if user.is_anonymous:
            raise Refused(403, "Not enough permissions")
        return user

    def _known(self, request: Request) -> Identity:
        """FTS looks at the VO before it looks at permissions, and an anonymous caller has none."""
        user = self._user(request)
        if user.is_anonymous:
            raise Refused(500, INTERNAL_ERROR)
        return user

    def _root(self, request: Request) -> Identity:
        user = self._user(request)
        if not user.is_root:
            raise Refused(403, "Not enough permissions")
        return user

    async def root(self, _request: Request) -> Response:
        return JSON(_ROOT)

    async def whoami(self, request: Request) -> Response:
        return JSON(self._user(request).whoami())

    # -- delegation --------------------------------------------------------------------------------

    def _owner(self, request: Request) -> Identity:
        user = self._user(request)
        if request.path_params["dlg_id"] != user.delegation_id:
            raise Refused(403, "The requested ID and the credentials ID do not match")
        return user

    async def delegation_view(self, request: Request) -> Response:
        return JSON(self._delegations.view(self._owner(request), self.engine.now_s))

    async def delegation_request(self, request: Request) -> Response:
        user = self._owner(request)
        headers = {"X-Delegation-ID": user.delegation_id or ""}
        return Response(self._delegations.request(user), media_type="text/plain", headers=headers)

    async def delegation_put(self, request: Request) -> Response:
        self._delegations.put(self._owner(request), await request.body())
        return Response(status_code=201)

    async def delegation_delete(self, request: Request) -> Response:
        self._delegations.delete(self._owner(request))
        return Response(status_code=204)

    # -- submissions -------------------------------------------------------------------------------

    async def submit(self, request: Request) -> Response:
        user = self._authorized(request)
        body = _body(request, await request.body())
        now_s = self.engine.now_s
        tokens = Submitted()
        if self._tokens and user.token_scopes is not None:
            tokens = self._tokens.submitted(body, user, bearer_of(request))
        else:
            self._delegations.check(user, now_s)
        job = build_job(body, user, now_s=now_s, rules=self._rules, first_file_id=self.engine.next_file_id)
        self.engine.submit(job, tokens)
        return JSON({"job_id": job.job_id})

    # -- reading -----------------------------------------------------------------------------------

    def _job(self, job_id: str, user: Identity) -> Job:
        job = self.engine.jobs.get(job_id)
        if job is None:
            raise Refused(404, f'No job with the id "{job_id}" has been found')
        if not user.may_see(job):
            raise Refused(403, f'Not enough permissions to check the job "{job_id}"')
        return job

    def _each(
        self, request: Request, user: Identity, show: Callable[[Job], dict[str, Any]], *, bad_is: str
    ) -> Response:
        """Answer for one job or for many, where errors are elements of the list."""
        ids = request.path_params["ids"].split(",")
        shown = []
        for job_id in filter(None, ids):
            try:
                shown.append(show(self._job(job_id, user)))
            except Refused as refused:
                status = refused.body["status"]
                shown.append({"job_id": job_id, "http_status": status, "http_message": refused.message})
        if len(ids) == 1:
            code = int(shown[0]["http_status"][:3])
            return JSON(shown[0], status_code=200 if code == 304 else code)
        bad = any(re.match(bad_is, one["http_status"]) for one in shown)
        return JSON(shown, status_code=207 if bad else 200)

    async def jobs(self, request: Request) -> Response:
        user = self._known(request)
        wanted = request.query_params.get("files")
        columns = wanted.split(",") if wanted else None

        def show(job: Job) -> dict[str, Any]:
            shown = wire_job(job)
            if columns:
                shown["files"] = [wire_file(job, file, columns) for file in job.files]
            return {**shown, "http_status": "200 Ok"}

        return self._each(request, user, show, bad_is="[45]")

    async def job_files(self, request: Request) -> Response:
        job = self._job(request.path_params["job_id"], self._known(request))
        return JSON([wire_file(job, file) for file in job.files])

    async def job_dm(self, request: Request) -> Response:
        self._job(request.path_params["job_id"], self._known(request))
        return JSON([])

    async def job_column(self, request: Request) -> Response:
        job = self._job(request.path_params["job_id"], self._known(request))
        column = request.path_params["column"]
        if column not in JOB_COLUMNS:
            raise Refused(404, "No such field")
        return JSON(getattr(job, column))

    async def retries(self, request: Request) -> Response:
        job = self._job(request.path_params["job_id"], self._known(request))
        file = _file_of(job, request.path_params["file_id"])
        if file is None:
            raise Refused(404, f'No file with the id "{request.path_params["file_id"]}" has been found')
        return JSON(wire_retries(job, file))

    async def list_jobs(self, request: Request) -> Response:
        user = self._authorized(request)
        query = request.query_params
        limit = _whole(query.get("limit"))
        if limit is not None and not 0 <= limit <= MAX_JOBS_LISTED:
            raise Refused(400, "The limit must be positive and less or equal than 500")
        if query.get("dlg_id") not in (None, user.delegation_id):
            raise Refused(403, "The provided delegation id does not match your delegation id")
        if query.get("user_dn") not in (None, user.user_dn):
            raise Refused(400, "The provided DN and delegation id do not correspond to the same user")
        found = self._matching(query, user, limit)
        columns = query["fields"].split(",") if query.get("fields") else JOB_COLUMNS
        return JSON([wire_job(job, columns) for job in found])

    def _matching(self, query: Any, user: Identity, limit: int | None) -> list[Job]:
        equal = {name: query[name] for name in ("user_dn", "source_se", "dest_se") if query.get(name)}
        if query.get("dlg_id"):
            equal["cred_id"] = query["dlg_id"]
        if not user.is_root or query.get("vo_name"):
            equal["vo_name"] = query.get("vo_name", "") if user.is_root else user.vos[0]
        states = query["state_in"].split(",") if query.get("state_in") else None
        since = self._window_start(query.get("time_window"))

        def fits(job: Job) -> bool:
            if any(getattr(job, name) != value for name, value in equal.items()):
                return False
            if states is None:
                return job.job_finished is None
            if job.job_state not in states:
                return False
            if limit is not None:
                return True
            return (job.job_finished is None) if since is None else (job.job_finished or "") >= since

        jobs: Iterable[Job] = filter(fits, self.engine.jobs.values())
        return sorted(jobs, key=lambda job: job.submit_time, reverse=True)[:limit] if limit else list(jobs)

    def _window_start(self, window: str | None) -> str | None:
        match = re.fullmatch(r"(\d+)(?::(\d+))?", window or "")
        if not match:
            return None
        return wire_time(self.engine.now_s - int(match[1]) * 3600 - int(match[2] or 0) * 60)

    async def files(self, request: Request) -> Response:
        user = self._authorized(request)
        query = request.query_params
        names = ("vo_name", "source_se", "dest_se", "dest_surl")
        equal = {name: query[name] for name in names if query.get(name)}
        states = query["state_in"].split(",") if query.get("state_in") else None
        shown: list[dict[str, Any]] = []
        for job in self.engine.jobs.values():
            if not user.may_see(job):
                continue
            for file in job.files:
                if file.finish_time is not None or (states and file.file_state not in states):
                    continue
                row = wire_file(job, file)
                if all(row[name] == value for name, value in equal.items()):
                    shown.append(row)
                if len(shown) == MAX_FILES_LISTED:
                    return JSON(shown)
        return JSON(shown)

    async def archived(self, request: Request) -> Response:
        return JSON(self._archived(request))

    async def archived_column(self, request: Request) -> Response:
        job, column = self._archived(request), request.path_params["column"]
        if column not in job:
            raise Refused(404, "No such field")
        return JSON(job[column])

    def _archived(self, request: Request) -> dict[str, Any]:
        user, job_id = self._known(request), request.path_params["job_id"]
        job = self.engine.archived(job_id)
        if job is None:
            raise Refused(404, f'No job with the id "{job_id}" has been found')
        if not user.is_root and job["vo_name"] not in user.vos:
            raise Refused(403, f'Not enough permissions to check the job "{job_id}"')
        return job

    # -- changing ----------------------------------------------------------------------------------

    async def cancel(self, request: Request) -> Response:
        user = self._known(request)

        def show(job: Job) -> dict[str, Any]:
            if job.is_final:
                return _terminal(job)
            self.engine.cancel_job(job)
            return {**wire_job(job), "http_status": "200 Ok", "http_message": None}

        answer = self._each(request, user, show, bad_is="[45]")
        self.engine.flush()
        return answer

    async def cancel_files(self, request: Request) -> Response:
        job = self._job(request.path_params["job_id"], self._known(request))
        if job.job_type != "N":
            raise Refused(400, f"Multihop or reuse jobs must be cancelled at once ({job.job_type})")
        states = []
        for file_id in request.path_params["file_ids"].split(","):
            file = _file_of(job, file_id)
            if file and file.file_state in FILE_ACTIVE:
                self.engine.cancel_file(job, file)
            states.append(file.file_state if file else "File does not belong to the job")
        self.engine.flush()
        return JSON(states if len(states) > 1 else states[0])

    async def cancel_everything(self, request: Request) -> Response:
        user = self._user(request)
        if not user.is_root:
            raise Refused(403, "User does not have root privileges")
        vo = request.path_params.get("vo")
        jobs = [j for j in self.engine.jobs.values() if not j.is_final and vo in (None, j.vo_name)]
        files = sum(file.file_state in FILE_ACTIVE for job in jobs for file in job.files)
        for job in jobs:
            self.engine.cancel_job(job)
        self.engine.flush()
        return JSON({"affected_files": files, "affected_dm": 0, "affected_jobs": len(jobs)})

    async def modify(self, request: Request) -> Response:
        user = self._known(request)
        body = _body(request, await request.body())
        try:
            priority = int((body.get("params") or {}).get("priority") or 0)
        except ValueError as error:
            raise Refused(400, "Invalid priority value") from error

        def show(job: Job) -> dict[str, Any]:
            if job.is_final:
                return _terminal(job)
            if priority:
                self.engine.set_priority(job, priority)
            shown = {**wire_job(job), "files": [wire_file(job, file) for file in job.files]}
            return {**shown, "http_status": "200 Ok", "http_message": None}

        return self._each(request, user, show, bad_is="[45]")

    # -- storages, links, configuration ------------------------------------------------------------

    async def ban(self, request: Request) -> Response:
        user = self._root(request)
        body = _body(request, await request.body())
        storage, status = body.get("storage"), str(body.get("status", "cancel")).upper()
        if not storage:
            raise Refused(400, "Missing storage parameter")
        if status not in ("CANCEL", "WAIT"):
            raise Refused(400, "status can only be 'wait' or 'cancel'")
        if body.get("allow_submit"):
            if status == "CANCEL":
                raise Refused(400, "allow_submit and cancel can not be combined")
            status = "WAIT_AS"
        return JSON(self.engine.ban(user.vos[0], storage, status))

    async def unban(self, request: Request) -> Response:
        user = self._root(request)
        storage = request.query_params.get("storage")
        if not storage:
            raise Refused(400, "Missing storage parameter")
        self.engine.unban(user.vos[0], storage)
        return Response(status_code=204)

    async def bans(self, request: Request) -> Response:
        self._authorized(request)
        return JSON([{"se": se, "vo": vo, "status": status} for vo, se, status in self.engine.bans()])

    async def optimizer(self, request: Request) -> Response:
        self._authorized(request)
        now = wire_time(self.engine.now_s)
        return JSON(
            [
                {
                    "source_se": source,
                    "dest_se": dest,
                    "active": self.engine.limits.per_link,
                    "nostreams": 1,
                    "datetime": now,
                    "ema": self.engine.ema.get((source, dest), 0.0),
                }
                for source, dest in self.engine.links()
            ]
        )

    async def config(self, request: Request) -> Response:
        self._root(request)
        everyone = {
            "vo_name": "*",
            "retry": self.engine.limits.retry,
            "max_time_queue": 0,
            "global_timeout": 0,
            "sec_per_mb": 0,
            "show_user_dn": False,
            "no_streaming": False,
        }
        return JSON({"*": everyone})

    # -- the sandbox's own -------------------------------------------------------------------------

    async def fault_plan(self, _request: Request) -> Response:
        return JSON(self.engine.faults.plan.model_dump())

    async def put_fault_plan(self, request: Request) -> Response:
        try:
            plan = FaultPlan.model_validate_json(await request.body())
        except ValidationError as error:
            raise Refused(400, str(error)) from error
        self.engine.faults.replace(plan)
        return JSON(plan.model_dump())

    async def stats(self, _request: Request) -> Response:
        return JSON(self.engine.stats())


def _dispatch(by_method: dict[str, Handler]) -> Handler:
    async def dispatch(request: Request) -> Response:
        # Starlette adds HEAD to every GET.
        return await by_method["GET" if request.method == "HEAD" else request.method](request)

    return dispatch


def _terminal(job: Job) -> dict[str, Any]:
    message = "The job is in a terminal state"
    return {"http_status": "304 Not Modified", "http_message": message, **wire_job(job)}


def _file_of(job: Job, file_id: str) -> File | None:
    return next((file for file in job.files if str(file.file_id) == file_id), None)


def _whole(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None  # FTS ignores what it cannot read


def _body(request: Request, raw: bytes) -> Any:
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if request.method == "POST" and content_type not in (
        "application/json",
        "application/x-www-form-urlencoded",
    ):
        raise Refused(400, "Expecting application/json or application/x-www-form-urlencoded")
    text = raw.decode(errors="replace")
    try:
        body = json.loads(unquote_plus(text) if content_type.endswith("urlencoded") else text)
    except ValueError as error:
        raise Refused(400, "Badly formatted JSON request") from error
    if not isinstance(body, dict):
        raise Refused(400, "Badly formatted JSON request")
    return body


class Front(FaultyFront):
    """What stands before the service: limits of the web server, and API faults."""

    def refusal(self, scope: Scope) -> Response | None:
        return _too_long(scope)


def _too_long(scope: Scope) -> Response | None:
    path = scope["raw_path"]
    line = f"{scope['method']} {path.decode()}?{scope['query_string'].decode()} HTTP/1.1"
    if len(line) > MAX_REQUEST_LINE_CHARS:
        return Response(_HTML_414, 414, media_type="text/html")
    if len(path) > MAX_PATH_CHARS:
        return Response(_HTML_404, 404, media_type="text/html")
    return None


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101
    return JSON(error.body, error.status)


async def _broken(_request: Request, _error: Exception) -> Response:
    """Starlette logs the error; FTS too answers every defect, and some mistakes of its caller, like this."""
    refused = Refused(500, INTERNAL_ERROR)
    return JSON(refused.body, refused.status)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    refused = Refused(error.status_code, NOT_ALLOWED if error.status_code == 405 else NOT_FOUND)
    return JSON(refused.body, refused.status)


def application(service: Service, pulse: Pulse, *, close: Callable[[], None] = lambda: None) -> ASGIApp:
    """Return the application; its engine runs while it is served, ``close`` is called at the end."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        pulse.start()
        rereading = asyncio.create_task(service.engine.faults.keep_reading())
        try:
            yield
        finally:
            rereading.cancel()
            pulse.stop()
            close()

    handlers = {Refused: _refused, HTTPException: _http_error, Exception: _broken}
    app = Starlette(routes=service.routes(), lifespan=lifespan, exception_handlers=handlers)
    return Front(app, service.engine.faults)
