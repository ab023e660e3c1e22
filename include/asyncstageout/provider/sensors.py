"""The sensors of ``stageout_sense`` and ``stageout_kill``: both live in the triggerer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.triggers.base import StartTriggerArgs

from asyncstageout.catalogue.cancels import KillRun, still_open
from asyncstageout.catalogue.sensing import staged_reports
from asyncstageout.provider.fts_clients import HookClients
from asyncstageout.provider.running import CATALOGUE_CONN_ID, catalogue
from asyncstageout.steps.cancel import outcome
from asyncstageout.steps.sense import look_everywhere

TRIGGER = "asyncstageout.provider.triggers.OpenFTSJobsTrigger"
KILLED_FILES_TRIGGER = "asyncstageout.provider.kill_triggers.KilledFilesTrigger"


class OpenFTSJobsSensor(BaseSensorOperator):
    """Wait until files of open FTS jobs have ended, at any FTS server, and stage what was said about them.

    Deferrable from the start: it lives in the triggerer alone (a tenth of a worker task's cost) and ends
    there. With ``deferrable=False`` it pokes from a worker.

    :param catalogue_conn_id: connection of type ``postgres``.
    :param shift_s: longest time of one watch.
    :param linger_s: how long the first news wait for others.
    """

    template_fields = ()
    start_from_trigger = True
    ui_color = "#e6f1f2"

    def __init__(
        self,
        *,
        catalogue_conn_id: str = CATALOGUE_CONN_ID,
        shift_s: float = 120.0,
        linger_s: float = 1.0,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.catalogue_conn_id = catalogue_conn_id
        self.start_from_trigger = deferrable
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls=TRIGGER,
            trigger_kwargs={
                "catalogue_conn_id": catalogue_conn_id,
                "shift_s": shift_s,
                "linger_s": linger_s,
            },
            next_method="execute_complete",
            # A trigger without a timeout whose arguments cannot be decoded hangs for ever.
            timeout=timedelta(seconds=2 * shift_s + 60),
        )

    def poke(self, context: Any) -> bool:  # noqa: ARG002 - Airflow's signature
        open_catalogue = partial(catalogue, self.catalogue_conn_id)
        with open_catalogue() as conn, HookClients.of(conn) as clients:
            look_everywhere(conn, clients, open_catalogue, now=datetime.now(UTC))
            return staged_reports(conn) > 0

    def execute_complete(self, context: Any, event: Any) -> Any:  # noqa: ARG002 - Airflow's signature
        """Take the event of a trigger that could not end the task itself."""
        return event


class KilledFilesSensor(BaseSensorOperator):
    """Wait until all files have ended of which this run told FTS to stop them, and say how.

    It starts and ends in the triggerer, red when some have not ended after a while. With ``deferrable=False``
    it pokes from a worker.

    :param catalogue_conn_id: connection of type ``postgres``.
    :param patience_s: how long it waits.
    """

    template_fields = ()
    start_from_trigger = True
    ui_color = "#f0d6d6"

    def __init__(
        self,
        *,
        catalogue_conn_id: str = CATALOGUE_CONN_ID,
        patience_s: float = 600.0,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=5.0, timeout=patience_s, **kwargs)
        self.catalogue_conn_id = catalogue_conn_id
        self.start_from_trigger = deferrable
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls=KILLED_FILES_TRIGGER,
            trigger_kwargs={"catalogue_conn_id": catalogue_conn_id, "patience_s": patience_s},
            next_method="execute_complete",
            # A trigger without a timeout whose arguments cannot be decoded hangs for ever.
            timeout=timedelta(seconds=2 * patience_s + 60),
        )

    def poke(self, context: Any) -> PokeReturnValue:
        ti = context["ti"]
        run = KillRun(ti.dag_id, ti.run_id)
        with catalogue(self.catalogue_conn_id) as conn:
            if still_open(conn, run):
                return PokeReturnValue(is_done=False)
            return PokeReturnValue(is_done=True, xcom_value=outcome(conn, run).as_xcom())

    def execute_complete(self, context: Any, event: Any) -> Any:  # noqa: ARG002 - Airflow's signature
        """Take the event of a trigger that could not end the task itself."""
        return event
