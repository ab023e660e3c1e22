"""What CRAB's PostJob, its FTS script and its publisher send, call by call; facts of CRABServer, not its code."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha224
from typing import Any
from urllib.parse import quote, urlencode

from httpx import Response
from starlette.testclient import TestClient

FTS = "https://fts3-cms.cern.ch:8446/"
STATES = dict(enumerate("NEW ACQUIRED FAILED DONE RETRY SUBMITTED KILL KILLED".split()))  # noqa: SIM905
PUBLICATIONS = dict(enumerate("NEW ACQUIRED FAILED DONE RETRY NOT_REQUIRED".split()))  # noqa: SIM905


def encoded(parameters: dict[str, Any], repeated: tuple[str, ...] = ()) -> str:
    """Encode as ``ServerUtilities.encodeRequest``: lists as Python's text, but for those named."""
    plain = {name: value for name, value in parameters.items() if name not in repeated}
    lists = [f"{name}={quote(item)}" for name in repeated for item in parameters.get(name, ())]
    return "&".join([urlencode(plain), *lists])


def rows(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Read rows as ``ServerUtilities.oracleOutputMapping``: columns without their first three letters."""
    columns = [name[3:] for name in answer["desc"]["columns"]]
    return [dict(zip(columns, row, strict=True)) for row in answer["result"]]


@dataclass
class CrabRest:
    """``RESTInteractions.CRABRest``: forms in the query of a GET, else in the body."""

    client: TestClient
    instance: str = "prod"

    def call(self, method: str, api: str, data: str) -> Response:
        url = f"/crabserver/{self.instance}/{api}"
        if method == "GET":
            return self.client.get(f"{url}?{data}")
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.client.request(method, url, content=data, headers=form)

    def ok(self, method: str, api: str, data: str) -> dict[str, Any]:
        answer = self.call(method, api, data)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def get(self, api: str, **parameters: Any) -> dict[str, Any]:
        return self.ok("GET", api, encoded(parameters))

    def post(self, api: str, *, repeated: tuple[str, ...] = (), **parameters: Any) -> dict[str, Any]:
        return self.ok("POST", api, encoded(parameters, repeated))


@dataclass
class PostJob:
    """Hands the files of one job over, and looks after them."""

    rest: CrabRest
    username: str = "alice"
    task: str = "261123_040000:alice_crab_test"
    worker: str = "schedd"
    retry: int = 0
    started: int = 1_763_869_000
    calls: int = field(default=0, init=False)

    def lfn(self, number: int) -> str:
        return f"/store/temp/user/{self.username}.0a1b2c/mc/out_{number}.root"

    def id(self, number: int) -> str:
        return sha224(self.lfn(number).encode()).hexdigest()

    def doc(self, number: int) -> dict[str, Any] | None:
        found = rows(self.rest.get("fileusertransfers", subresource="getById", id=self.id(number)))
        return found[0] if len(found) == 1 else None

    def insert(self, number: int, **changes: Any) -> dict[str, Any]:
        """Return the parameters of the PUT of ``updateOrInsertDoc``."""
        return {
            "id": self.id(number), "username": self.username, "taskname": self.task,
            "start_time": self.started, "destination": "T2_CH_CERN",
            "destination_lfn": self.destination_lfn(number), "source": "T2_IT_Bari",
            "source_lfn": self.lfn(number), "filesize": 1000 + number, "publish": 0, "transfer_state": "NEW",
            "publication_state": "NOT_REQUIRED", "job_id": f"0-{number}", "job_retry_count": self.retry,
            "type": "output",
        } | changes  # fmt: skip

    def inject(self, number: int, **changes: Any) -> None:
        """Do what ``inject_to_aso`` does for one file: look, insert or send again, claim."""
        doc, state = self.doc(number), changes.get("transfer_state", "NEW")
        if doc is None:
            self.rest.ok("PUT", "fileusertransfers", encoded(self.insert(number, **changes)))
        elif doc["start_time"] == self.started:
            return
        else:
            again = {
                "id": doc["id"], "username": doc["username"], "taskname": doc["taskname"],
                "start_time": self.started, "source": "T2_IT_Bari", "source_lfn": doc["source_lfn"],
                "filesize": doc["filesize"], "transfer_state": state, "publish": 0,
                "publication_state": "NOT_REQUIRED", "job_id": doc["jobid"], "job_retry_count": self.retry,
                "transfer_retry_count": 0, "subresource": "updateDoc",
            } | changes  # fmt: skip
            self.rest.post("fileusertransfers", **again)
        self.claim(number, state=state)

    def claim(self, *numbers: int, state: str = "NEW") -> dict[str, Any]:
        return self.rest.post(
            "filetransfers", subresource="updateTransfers", list_of_ids=[self.id(n) for n in numbers],
            list_of_transfer_state=[state for _ in numbers], asoworker=self.worker,
        )  # fmt: skip

    def statuses(self) -> dict[str, str]:
        """Do what ``get_transfers_statuses`` does."""
        answer = self.rest.get(
            "fileusertransfers", subresource="getTransferStatus", username=self.username, taskname=self.task
        )
        return {row["id"]: STATES[row["transfer_state"]] for row in rows(answer)}

    def publications(self) -> dict[str, str]:
        answer = self.rest.get(
            "fileusertransfers", subresource="getPublicationStatus", username=self.username,
            taskname=self.task,
        )  # fmt: skip
        return {row["id"]: PUBLICATIONS[row["publication_state"]] for row in rows(answer)}

    def upload_metadata(self, number: int, **changes: Any) -> dict[str, Any]:
        """Do what ``upload_output_files_metadata`` does for one file: lists are repeated keys."""
        said: dict[str, Any] = {
            "taskname": self.task, "jobid": f"{number}", "outsize": 1000 + number,
            "publishdataname": "test-94ba0e06145abd65ccb1d21786dc7e1d", "appver": "CMSSW_14_0_1",
            "outtype": "EDM", "checksummd5": "asda", "checksumcksum": 2091402041,
            "checksumadler32": f"{number + 1:x}", "acquisitionera": "null", "events": 100,
            "outlocation": "T2_CH_CERN", "outlfn": self.destination_lfn(number),
            "outtmplocation": "T2_IT_Bari", "outtmplfn": self.lfn(number),
            "outdatasetname": f"/Mc/{self.username}-test-94ba0e06145abd65ccb1d21786dc7e1d/USER",
            "directstageout": 0, "globalTag": "None", "outfileruns": ["1"],
            "outfilelumis": [f"{number + 1}:100"], "inparentlfns": [],
        } | changes  # fmt: skip
        lists = ("outfileruns", "outfilelumis", "inparentlfns")
        return self.rest.ok("PUT", "filemetadata", encoded(said, lists))

    def destination_lfn(self, number: int) -> str:
        return f"/store/user/{self.username}/mc/test/out_{number}.root"

    def set_publication_flag(self, *numbers: int) -> dict[str, Any]:
        """Say that the metadata are there (``setPublicationFlag``)."""
        return self.rest.post(
            "filetransfers", subresource="updatePublication", asoworker=self.worker, publish_flag=1,
            list_of_ids=[self.id(n) for n in numbers], list_of_publication_state=["NEW" for _ in numbers],
        )  # fmt: skip

    def cancel(self, *ids: str) -> tuple[list[str], list[str]]:
        """Do what ``cancel`` does; return what was killed and what was not."""
        answer = self.rest.post(
            "fileusertransfers", repeated=("listOfIds",), subresource="killTransfersById", publish=0,
            username=self.username, listOfIds=list(ids),
        )  # fmt: skip
        return answer["result"][0]["killed"], answer["result"][0]["failedKill"]


@dataclass
class FTSScript:
    """Moves the files that PostJob wrote down (``FTS_Transfers.py``)."""

    rest: CrabRest
    worker: str = "schedd"

    def _update(self, ids: list[str], state: str, **lists: Any) -> dict[str, Any]:
        return self.rest.post(
            "filetransfers", asoworker=self.worker, subresource="updateTransfers", list_of_ids=ids,
            list_of_transfer_state=[state for _ in ids], **lists,
        )  # fmt: skip

    def mark_submitted(self, ids: list[str], job: str) -> dict[str, Any]:
        return self._update(
            ids, "SUBMITTED", list_of_fts_instance=[FTS for _ in ids], list_of_fts_id=[job for _ in ids]
        )

    def mark_transferred(self, ids: list[str]) -> dict[str, Any]:
        return self._update(ids, "DONE")

    def mark_failed(self, ids: list[str], reasons: list[str], state: str = "FAILED") -> dict[str, Any]:
        return self._update(ids, state, list_of_failure_reason=reasons, list_of_retry_value=[0 for _ in ids])


@dataclass
class Publisher:
    """Publishes what arrived (``PublisherMaster.py``, ``TaskPublish.py``)."""

    rest: CrabRest
    worker: str = "schedd"

    def acquire(self) -> list[dict[str, Any]]:
        self.rest.post("filetransfers", asoworker=self.worker, subresource="acquirePublication")
        return rows(
            self.rest.get(
                "filetransfers", asoworker=self.worker, subresource="acquiredPublication", grouping=0,
                limit=100000,
            )
        )  # fmt: skip

    def metadata(self, task: str, *lfns: str, filetype: str = "EDM", **more: Any) -> list[dict[str, Any]]:
        """Do what ``getInfoFromFMD`` does: of these files, or of all of the task."""
        asked = {"taskname": task, "filetype": filetype, "lfn": list(lfns)} | more
        if not lfns:
            del asked["lfn"]
        answer = self.rest.ok("GET", "filemetadata", encoded(asked, ("lfn",)))
        return [json.loads(text) for text in answer["result"]]

    def mark(self, ids: list[str], state: str, reason: str = "") -> dict[str, Any]:
        return self.rest.post(
            "filetransfers", asoworker=self.worker, subresource="updatePublication", list_of_ids=ids,
            list_of_publication_state=[state for _ in ids], list_of_retry_value=[1 for _ in ids],
            list_of_failure_reason=[reason for _ in ids],
        )  # fmt: skip
