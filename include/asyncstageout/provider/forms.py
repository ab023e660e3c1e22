"""What the forms of ``stageout_kill`` and ``stageout_retry`` share: which files, and how careful one is."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import ExceptionRetryPolicy, Param, RetryAction, RetryRule

from asyncstageout.core.failures import Category
from asyncstageout.core.selections import APPROVE_ABOVE

SITE_NAME = r"^T[0-3]_[A-Z]{2}_\w+$"

RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(
            exception="asyncstageout.provider.acting_tasks.WrongForm",
            action=RetryAction.FAIL,
            reason="the form stays as it is",
        ),
    ]
)


def _these(description: str, section: str = "These files", **schema: Any) -> Param:
    return Param(None, type=["null", "string"], description=description, section=section, **schema)


WHICH_FILES = {
    "ids": Param(
        None,
        type=["null", "array"],
        items={"type": ["string", "integer"]},
        section="These files",
        description="Numbers or request ids, one a line.",
        title="Files",
    ),
    "task": _these("Files of one task (CRAB workflow name).", title="Task"),
    "username": _these("Files of one user (CERN account).", title="User"),
    "source": _these("Files at one site, such as T2_IT_Bari.", pattern=SITE_NAME, title="Source"),
    "destination": _these("Files for one site, such as T2_CH_CERN.", pattern=SITE_NAME, title="Destination"),
    "site": _these("Files from or to one site.", pattern=SITE_NAME, title="Site"),
}
HOW_THEY_ENDED = {
    "category": _these(
        "Why they failed.",
        "Ended like this",
        enum=[None, *(category.value for category in Category)],
        title="Category",
    ),
    "ended_from": _these(
        "Ended at or after this time.", "Ended like this", format="date-time", title="Ended from"
    ),
    "ended_to": _these(
        "Ended before this time.", "Ended like this", format="date-time", title="Ended before"
    ),
}
WITH_CARE = {
    "comment": Param(
        "", type="string", maxLength=500, description="Why; for the history of each file.", title="Comment"
    ),
    "approve_above": Param(
        APPROVE_ABOVE,
        type="integer",
        minimum=0,
        description="Ask a person before more files than these are touched.",
        title="Ask a person above",
    ),
    "dry_run": Param(True, type="boolean", description="Only say what would happen.", title="Dry run"),
}


class ApproveFilesOperator(ApprovalOperator):
    """Wait up to a day until a person approves what a form means; rejected, or unheard, nothing happens.

    :param asker: id of the task that counted the files and left the question.
    """

    def __init__(self, *, asker: str, **kwargs: Any) -> None:
        # A task that waits for a person has no time of its own: Airflow would take it for that of the person.
        kwargs["execution_timeout"] = None
        super().__init__(
            subject=f"{{{{ ti.xcom_pull('{asker}', key='question') }}}}",
            body=f"{{{{ ti.xcom_pull('{asker}', key='summary')['sentence'] }}}}",
            defaults=self.REJECT,
            response_timeout=timedelta(days=1),
            ignore_downstream_trigger_rules=True,
            **kwargs,
        )
        self.asker = asker
