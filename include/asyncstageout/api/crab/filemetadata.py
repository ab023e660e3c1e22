"""``filemetadata``: what PostJob says of each output file, and CRAB's publisher and ``crab report`` read."""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi import APIRouter
from psycopg import Connection
from starlette.responses import Response

from asyncstageout.api.callers import Asker, Catalogue
from asyncstageout.api.crab import forms
from asyncstageout.api.crab.answers import CrabAnswer, modified, on_record, result
from asyncstageout.api.crab.forms import Form, Parameters, bad
from asyncstageout.api.crab.schema import form_in_body, form_in_query
from asyncstageout.api.scopes import visible_to
from asyncstageout.catalogue.crab import Conflict
from asyncstageout.catalogue.crab_metadata import (
    metadata_key,
    metadata_rows,
    set_file_state,
    task_owner,
)
from asyncstageout.catalogue.file_metadata import Metadata, put_metadata
from asyncstageout.core.callers import Caller, Role
from asyncstageout.core.crab import METADATA_NAMES, run_lumis
from asyncstageout.core.publication import facts_or_problem

router = APIRouter()

LFN = re.compile(r"/[a-zA-Z0-9\-_./]{1,600}")
LUMIS = re.compile(r"\d+(,\d+)*|\d+:(\d+|None)(,\d+:(\d+|None))*")
RUN = re.compile(r"\d{1,10}")
TEXTS = {
    "outtype": re.compile("EDM|LOG|TFILE|FAKE|POOLIN|DQM"),
    "outdatasetname": re.compile(r"/[A-Za-z0-9_.\-]+/[A-Za-z0-9_.\-]+/[A-Z\-]+"),
    "acquisitionera": re.compile(r"[A-Za-z0-9_:\-]{1,255}"),
    "appver": re.compile(r"CMSSW(_\d+){3}(_[a-zA-Z0-9_]+)?"),
    "publishdataname": re.compile(r"[a-zA-Z0-9\-_.]{1,400}"),
    "outlocation": forms.SITE,
    "outtmplocation": forms.SITE,
    "checksumadler32": re.compile(r"[A-Za-z0-9\-]+"),
    "checksummd5": re.compile(r"[A-Za-z0-9\-]+"),
    "outlfn": LFN,
}
"""Patterns of CRABServer (``Regexps.py``); these are required."""
OPTIONAL = {
    "globalTag": re.compile(r"[a-zA-Z0-9\s.\-_:]{1,100}"),
    "jobid": re.compile(r"[A-Za-z0-9_.\-]{1,20}"),
    "filestate": re.compile("TRANSFERRING|FINISHED|FAILED|COOLOFF"),
    "outtmplfn": LFN,
}
NUMBERS = ("outsize", "events", "checksumcksum")
LISTS = ("outfileruns", "outfilelumis", "inparentlfns")


def _body(form: Form, task: str) -> dict[str, Any]:
    """Return what is said, under the names of CRAB's rows."""
    said: dict[str, Any] = {"taskname": task}
    said |= {name: form.required(name, pattern) for name, pattern in TEXTS.items()}
    said |= {name: form.text(name, pattern) for name, pattern in OPTIONAL.items()}
    said |= {name: form.required_number(name) for name in NUMBERS}
    said["inparentlfns"] = _items(form, "inparentlfns", LFN)
    runs, lumis = _items(form, "outfileruns", RUN), _items(form, "outfilelumis", LUMIS)
    if len(runs) != len(lumis):
        bad("outfilelumis", f"has {len(lumis)} items, and outfileruns has {len(runs)}")
    body = {theirs: said[name] for name, theirs in METADATA_NAMES.items()}
    return body | {"runlumi": run_lumis(runs, lumis)}


def _items(form: Form, name: str, pattern: re.Pattern[str]) -> list[str]:
    items = form.items(name) or []
    return items if all(map(pattern.fullmatch, items)) else bad(name, "is malformed")


def _owner(caller: Caller, conn: Connection, task: str) -> str:
    """Return whose task it is, if the caller may act for him; a user's unknown task is his own."""
    owner = task_owner(conn, task) or (caller.name if caller.role is Role.USER else None)
    if owner is None or not caller.may_act_for(owner):
        bad("taskname", f"there is no task {task} of yours")
    return owner


@router.put(
    "/filemetadata",
    responses={200: {"model": CrabAnswer}},
    summary="Say what publication needs to know of a file",
    openapi_extra=form_in_body("taskname", *TEXTS, *NUMBERS, optional=(*OPTIONAL, *LISTS)),
)
def crab_put_metadata(instance: str, caller: Asker, conn: Catalogue, form: Parameters) -> Response:
    """Keep what is said of one file; what is said again replaces it."""
    task = form.required("taskname", forms.TASK)
    body, owner = _body(form, task), _owner(caller, conn, task)
    key = metadata_key(conn, task, body["lfn"], body["tmplfn"])
    record = Metadata(key, task, owner, json.dumps(body), facts_or_problem(body))

    def do(step_run: int) -> tuple[str, int]:
        (kept,) = put_metadata(conn, [record], by=caller.name, step_run=step_run)
        if kept.outcome == "refused":
            raise Conflict(key, "there", kept.reason or "")
        return f"{instance}: metadata of {body['lfn']} {kept.outcome}", 1

    on_record(conn, caller, "filemetadata", do)
    return result()


@router.post(
    "/filemetadata",
    responses={200: {"model": CrabAnswer}},
    summary="Set the state kept with a file's metadata",
    openapi_extra=form_in_body("taskname", "outlfn", "filestate"),
)
def crab_set_file_state(instance: str, caller: Asker, conn: Catalogue, form: Parameters) -> Response:
    """Keep CRAB's own word for where a file is; nothing here depends on it."""
    task, lfn = form.required("taskname", forms.TASK), form.required("outlfn", LFN)
    state = form.required("filestate", OPTIONAL["filestate"])
    counts: list[int] = []

    def do(_: int) -> tuple[str, int]:
        counts.append(set_file_state(conn, task, lfn, state, visible_to(caller)))
        return f"{instance}: {lfn} is {state}", counts[0]

    on_record(conn, caller, "changeFileState", do)
    return modified(counts[0])


@router.get(
    "/filemetadata",
    responses={200: {"model": CrabAnswer}},
    summary="What was said of a task's files",
    openapi_extra=form_in_query("howmany", "lfn", required=("taskname", "filetype")),
)
def crab_get_metadata(instance: str, caller: Asker, conn: Catalogue, form: Parameters) -> Response:  # noqa: ARG001
    """Return what was said, each as a JSON text, the newest first."""
    task = form.required("taskname", forms.TASK)
    types = form.required("filetype").split(",")
    rows = metadata_rows(
        conn, task, types, visible_to(caller), limit=form.number("howmany") or None, lfns=form.items("lfn")
    )
    return result(*map(json.dumps, rows))
