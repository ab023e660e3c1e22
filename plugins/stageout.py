"""What AsyncStageOut adds to Airflow's api-server: REST below /stageout, pages below it, links of tasks.

Every Airflow process executes this file, but only the api-server serves: its first request makes the app.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.plugins_manager import AirflowPlugin
from airflow.sdk import BaseOperatorLink
from starlette.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class StageoutRoom:
    """The pages and the REST API, made when they are first asked something."""

    def __init__(self) -> None:
        self._lock = Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = await run_in_threadpool(self._app)
        await app(scope, receive, send)

    def _app(self) -> ASGIApp:
        with self._lock:
            from asyncstageout.provider.web import stageout_room  # noqa: PLC0415

            return stageout_room()


class StageoutLink(BaseOperatorLink):
    """What a task's run did: made when somebody looks at a task, so that it costs tasks nothing."""

    name = "Stage-out"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 - Airflow's signature
        from asyncstageout.provider.links import run_in_room  # noqa: PLC0415

        return run_in_room(ti_key.dag_id, ti_key.run_id)


def icon(colour: str) -> str:
    """Return the picture beside the entry, as a URL: nobody has logged in to us when Airflow shows it."""
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="{colour}"'
        ' stroke-width="2" stroke-linecap="round" stroke-linejoin="round">'
        '<path d="M3 7h11M10 3l4 4-4 4M21 17H10M14 13l-4 4 4 4"/></svg>'
    )
    return "data:image/svg+xml," + quote(picture)


class StageoutPlugin(AirflowPlugin):
    """Registration: access is checked by the application itself, since Airflow leaves that to it."""

    name = "stageout"
    global_operator_extra_links = [StageoutLink()]  # noqa: RUF012
    fastapi_apps = [{"app": StageoutRoom(), "url_prefix": "/stageout", "name": "stageout"}]  # noqa: RUF012
    # Airflow's address bar follows what its frame shows, so that every view can be shared.
    external_views = [  # noqa: RUF012
        {
            "name": "Stage-out",
            "href": "stageout/ui/",
            "destination": "nav",
            "url_route": "stageout",
            "nav_top_level": True,
            "icon": icon("#404753"),
            "icon_dark_mode": icon("#cbd2de"),
        }
    ]
