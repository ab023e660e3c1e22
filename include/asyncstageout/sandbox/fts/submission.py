"""From the body of ``POST /jobs`` to a job and its files, or to FTS's refusal (rules of JobBuilder, 3.13)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit
from uuid import UUID, uuid1, uuid5

from asyncstageout.core.fts_ids import BASE_ID, deterministic_job_id
from asyncstageout.sandbox.fts.identity import Identity
from asyncstageout.sandbox.fts.records import File, Job, wire_time
from asyncstageout.sandbox.fts.refusals import INTERNAL_ERROR, Refused

JOB_METADATA_BYTES = 2048
FILE_METADATA_BYTES = 4096
OTHER_METADATA_BYTES = 1024
MAX_CHARS = {"url": 1100, "activity": 255, "checksum": 100}
"""Widths of the database's columns: more is a 500, not a 400."""

DEFAULTS: dict[str, Any] = {
    "bring_online": -1,
    "verify_checksum": False,
    "copy_pin_lifetime": -1,
    "archive_timeout": -1,
    "job_metadata": None,
    "reuse": None,
    "multihop": False,
    "retry": 0,
    "retry_delay": 0,
    "priority": 3,
    "max_time_in_queue": 0,
    "id_generator": "standard",
}
STRATEGIES = frozenset(
    {
        "auto",
        "orderly",
        "queue",
        "success",
        "throughput",
        "file-throughput",
        "pending-data",
        "waiting-time",
        "waiting-time-with-error",
        "duration",
    }
)
_OVERWRITES = (
    ("overwrite", "Y"),
    ("overwrite_on_retry", "R"),
    ("overwrite_hop", "M"),
    ("overwrite_when_only_on_disk", "D"),
)
_SUFFIX_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_INTERNAL = (("nostreams", "nostreams"), ("timeout", "timeout"), ("buffer_size", "buffersize"))
_INTERNAL_FLAGS = (
    ("strict_copy", "strict"),
    ("disable_cleanup", "disable-cleanup"),
    ("ipv4", "ipv4"),
    ("ipv6", "ipv6"),
    ("s3alternate", "s3alternate"),
)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration of a server decides about submissions."""

    submit_host: str = "localhost"
    check_duplicates: bool = False
    """``CheckDuplicates``: no second unfinished file to the same destination."""


def build_job(body: Any, user: Identity, *, now_s: float, rules: Rules, first_file_id: int) -> Job:
    """Return the job with its files in their first states.

    Raises:
        Refused: with the status and the text of FTS.
    """
    try:
        return _build(body, user, now_s, rules, first_file_id)
    except ValueError as error:
        raise Refused(400, f"Invalid value within the request: {error}") from error
    except TypeError as error:
        raise Refused(400, f"Malformed request: {error}") from error
    except KeyError as error:
        raise Refused(400, f"Missing parameter: {error}") from error
    except AttributeError as error:  # a number where a text is wanted
        raise Refused(500, INTERNAL_ERROR) from error


def _build(body: Any, user: Identity, now_s: float, rules: Rules, first_file_id: int) -> Job:
    if "delete" in body:
        raise Refused(405, "Deletion jobs are no longer supported by FTS")
    entries = body.get("files")
    if entries is None:
        raise Refused(400, "No transfers operations specified")
    if not isinstance(entries, list):
        raise Refused(500, INTERNAL_ERROR)
    params = _params(body.get("params") or {})
    job = _job(params, user, now_s, rules)
    staged = job.bring_online > 0 or job.copy_pin_lifetime > 0
    job.job_state = entry_state = "STAGING" if staged else "SUBMITTED"
    job.job_metadata = _job_metadata(params["job_metadata"], user)
    job.files = _files(entries, job, entry_state, first_file_id)
    if not job.files:
        raise Refused(400, "No valid pairs available")
    job.verify_checksum = _checksum_letter(params["verify_checksum"], entries)
    _settle_type(job, entries)
    _settle_first_states(job, entry_state)
    _check_widths(job)
    if rules.check_duplicates:
        for file in job.files:
            if file.file_state != "NOT_USED":
                file.dest_surl_uuid = str(uuid5(BASE_ID, file.dest_surl))
    return job


def _params(given: dict[str, Any]) -> dict[str, Any]:
    return {**DEFAULTS, **{name: value for name, value in given.items() if value is not None}}


def _job(params: dict[str, Any], user: Identity, now_s: float, rules: Rules) -> Job:
    job_type = "H" if params["multihop"] else "Y" if _flag(params["reuse"]) else "N"
    queue_s = _queue_s(params["max_time_in_queue"])
    return Job(
        job_id=str(_job_id(params, user)),
        job_type=job_type,
        vo_name=user.vos[0],
        user_dn=user.user_dn,
        cred_id=user.delegation_id or "",
        submit_host=rules.submit_host,
        submit_time=wire_time(now_s),
        source_se=None,
        dest_se=None,
        overwrite_flag=_overwrite_flag(params, job_type),
        retry=int(params["retry"]),
        retry_delay=int(params["retry_delay"]),
        priority=max(min(int(params["priority"]), 5), 1),
        max_time_in_queue=int(now_s) + queue_s if queue_s is not None else None,
        internal_job_params=_internal_params(params),
        dst_file_report=_flag(params.get("dst_file_report")),
        bring_online=int(params["bring_online"]),
        copy_pin_lifetime=int(params["copy_pin_lifetime"]),
        archive_timeout=int(params["archive_timeout"]),
        source_spacetoken=params.get("source_spacetoken") or None,
        destination_spacetoken=params.get("destination_spacetoken") or None,
    )


def _job_id(params: dict[str, Any], user: Identity) -> UUID:
    if params["id_generator"] != "deterministic":
        return uuid1()
    if not params.get("sid"):
        raise Refused(400, "Need sid for deterministic job id generation")
    return deterministic_job_id(user.vos[0], str(params["sid"]))


def _overwrite_flag(params: dict[str, Any], job_type: str) -> str | None:
    letters = "".join(letter for name, letter in _OVERWRITES if _flag(params.get(name)))
    if len(letters) > 1 and letters != "MD":
        raise Refused(400, "Incompatible overwrite flags used at the same time")
    if "D" in letters and int(params["archive_timeout"]) <= 0:
        raise Refused(400, "'overwrite-when-only-on-disk' requires 'archive-timeout' to be set")
    if "M" in letters and job_type != "H":
        raise Refused(400, "'overwrite-hop' requires multihop job submission")
    return "Q" if letters == "MD" else letters or None


def _internal_params(params: dict[str, Any]) -> str | None:
    numbers = [f"{wire}:{int(params[name])}" for name, wire in _INTERNAL if params.get(name)]
    flags = [wire for name, wire in _INTERNAL_FLAGS if params.get(name)]
    return ",".join(numbers + flags) or None


def _flag(value: Any) -> bool:
    return value[:1].upper() == "Y" if isinstance(value, str) else bool(value)


def _queue_s(value: Any) -> int | None:
    """A number is hours; a string has its unit as a suffix; what cannot be read is no limit."""
    if isinstance(value, int):
        return value * 3600 or None
    if not isinstance(value, str) or not value[:-1].isdigit():
        return None
    unit_s = _SUFFIX_S.get(value[-1].lower())
    return int(value[:-1]) * unit_s if unit_s else None


def _files(entries: list[Any], job: Job, entry_state: str, first_file_id: int) -> list[File]:
    files: list[File] = []
    for index, entry in enumerate(entries):
        sources = [_url(url) for url in entry["sources"]]
        destinations = [_url(url) for url in entry["destinations"]]
        unused = len(sources) > 1 or job.job_type == "H"
        for source in sources:
            for destination in destinations:
                file = _file(entry, index, source, destination, first_file_id + len(files))
                file.file_state = "NOT_USED" if unused else entry_state
                files.append(file)
    return files


def _file(entry: dict[str, Any], index: int, source: SplitResult, dest: SplitResult, file_id: int) -> File:
    strategy = entry.get("selection_strategy") or "auto"
    if strategy not in STRATEGIES:
        raise Refused(400, f"{strategy} algorithm is not supported by Scheduler")
    return File(
        file_id=file_id,
        file_index=index,
        source_surl=source.geturl(),
        dest_surl=dest.geturl(),
        source_se=f"{source.scheme}://{source.hostname}",
        dest_se=f"{dest.scheme}://{dest.hostname}",
        hashed_id=random.getrandbits(16),
        checksum=entry.get("checksum") or "ADLER32",
        user_filesize=int(float(entry.get("filesize") or 0)),
        activity=entry.get("activity") or "default",
        selection_strategy=strategy,
        scitag=_scitag(entry.get("scitag")),
        file_metadata=_metadata(entry.get("metadata"), FILE_METADATA_BYTES),
        staging_metadata=_metadata(entry.get("staging_metadata"), OTHER_METADATA_BYTES, "Staging metadata"),
        archive_metadata=_metadata(entry.get("archive_metadata"), OTHER_METADATA_BYTES, "Archive metadata"),
    )


def _url(text: Any) -> SplitResult:
    url: SplitResult = urlsplit(text.strip())
    if not url.scheme:
        raise ValueError(f"Missing scheme ({url.geturl()})")
    if url.scheme == "file":
        raise ValueError(f"Can not transfer local files ({url.geturl()})")
    if not url.path or (url.path == "/" and not url.query):
        raise ValueError(f"Missing path ({url.geturl()})")
    if not url.hostname:
        raise ValueError(f"Missing host ({url.geturl()})")
    return url


def _scitag(value: Any) -> int | None:
    if value is None:
        return None
    if not 65 <= int(value) <= 65535:
        raise ValueError(f"Invalid SciTag value: {value} (not in [65, 65535] range)")
    return int(value)


def _metadata(value: Any, limit_bytes: int, only_dict: str | None = None) -> dict[str, Any] | None:
    if value is None:
        return None
    if len(value if isinstance(value, str) else json.dumps(value)) > limit_bytes:
        raise ValueError(f"Job Submission Refused, metadata exceeds size limit of {limit_bytes}")
    if isinstance(value, dict):
        return value
    if only_dict:
        raise ValueError(f"{only_dict} not in JSON format")
    if isinstance(value, str):
        return {"label": value}
    raise ValueError("Metadata neither JSON nor String")


def _job_metadata(value: Any, user: Identity) -> dict[str, Any]:
    return {**(_metadata(value, JOB_METADATA_BYTES) or {}), "auth_method": user.method}


def _checksum_letter(verify: Any, entries: list[dict[str, Any]]) -> str:
    """Only the first letter counts, and nobody checks it; of a bool the last file's checksum decides."""
    if not isinstance(verify, bool):
        return str(verify)[:1]
    if verify:
        return "b"
    return "t" if entries[-1].get("checksum") else "n"


def _settle_type(job: Job, entries: list[Any]) -> None:
    if len(job.files) != len(entries):  # several sources or destinations
        if job.job_type != "N":
            raise Refused(
                400,
                "Can not request multiple replica job together with multihop or session reuse "
                "at the same time",
            )
        if len({file.file_index for file in job.files}) > 1:
            raise Refused(400, "Multiple replica jobs must only have one unique file")
        job.job_type = "R"
    if job.job_type == "H":
        job.source_se, job.dest_se = job.files[0].source_se, job.files[-1].dest_se
    else:
        job.source_se = _common(file.source_se for file in job.files)
        job.dest_se = _common(file.dest_se for file in job.files)
    if job.job_type == "Y" and not (job.source_se and job.dest_se):
        raise Refused(
            400, "Reuse jobs must only contain transfers for the same source ad destination storage"
        )


def _common(values: Iterable[str]) -> str | None:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def _settle_first_states(job: Job, entry_state: str) -> None:
    if job.job_type in ("R", "H"):
        job.files[0].file_state = entry_state


def _check_widths(job: Job) -> None:
    for file in job.files:
        widths = (
            ("url", file.source_surl),
            ("url", file.dest_surl),
            ("activity", file.activity),
            ("checksum", file.checksum),
        )
        if any(len(text) > MAX_CHARS[column] for column, text in widths):
            raise Refused(500, INTERNAL_ERROR)
