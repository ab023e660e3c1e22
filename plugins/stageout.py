"""What AsyncStageOut adds to Airflow's api-server: the REST API below /stageout.

Every Airflow process executes this file, but only the api-server serves: its first request makes the app.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from airflow.plugins_manager import AirflowPlugin
from starlette.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class StageoutAPI:
    """The REST API, made when it is first asked something."""

    def __init__(self) -> None:
        self._lock = Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = await run_in_threadpool(self._app)
        await app(scope, receive, send)

    def _app(self) -> ASGIApp:
        with self._lock:
            from asyncstageout.provider.web import stageout_api  # noqa: PLC0415

            return stageout_api()


class StageoutPlugin(AirflowPlugin):
    """Registration: access is checked by the application itself, since Airflow leaves that to it."""

    name = "stageout"
    fastapi_apps = [{"app": StageoutAPI(), "url_prefix": "/stageout", "name": "stageout"}]  # noqa: RUF012
