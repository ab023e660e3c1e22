"""Sends what a real FTS 3.13 tells its broker when a file moves: "complete" (CO) and "state" (SS) messages.

Like there it is fire and forget: while the broker is away, messages are lost. SS messages that the REST
service sends at submission, "start" and "queue state" messages are left out.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from asyncstageout.clients.messages import COMPLETE, STATE, Broker
from asyncstageout.sandbox.fts.records import File, Job

logger = logging.getLogger(__name__)

END_OF_MESSAGE = "\x04"
TTL_MS = 24 * 3600 * 1000
CONNECT_EVERY_S = 1.0
_OUTCOMES = {"FINISHED": ("Ok", 1), "FAILED": ("Error", 0), "CANCELED": ("Abort", -1)}
_CONSTANT: dict[str, Any] = {
    **dict.fromkeys(
        (
            "block_size", "buf_size", "chk_timeout", "nstreams", "scitag", "srm_finalization_time",
            "srm_overhead_time", "srm_preparation_time", "tcp_buf_size", "time_srm_fin_end",
            "time_srm_fin_st", "time_srm_prep_end", "time_srm_prep_st", "timestamp_checksum_dest_ended",
            "timestamp_checksum_dest_st", "timestamp_checksum_dst_diff", "timestamp_checksum_src_diff",
            "timestamp_chk_src_ended", "timestamp_chk_src_st",
        ),
        0,
    ),
    **dict.fromkeys(("cleanup_code", "eviction_code", "overwrite_on_disk_deletion_code"), -1),
    **dict.fromkeys(
        (
            "dest_srm_v", "dst_site_name", "final_destination", "src_site_name", "src_srm_v",
            "srm_space_token_dst", "srm_space_token_src", "user_dn",
        ),
        "",
    ),
    **dict.fromkeys(
        ("is_archiving", "job_m_replica", "job_multihop", "overwrite_on_disk_flag", "transfer_lasthop"), False
    ),
    "auth_method": "certificate", "channel_type": "urlcopy", "endpnt": "localhost", "ipver": "unknown",
    "job_state": "UNKNOWN", "srm_overhead_percentage": 0.0, "t_timeout": 3600,
}  # fmt: skip


def state_message(job: Job, file: File, now_s: float) -> dict[str, Any]:
    """Return the body of an SS message: a file is in another state."""
    return {
        "archiving": False,
        "archiving_finished": 0,
        "archiving_start": 0,
        "dest_se": file.dest_se,
        "dst_url": file.dest_surl,
        "endpnt": "localhost",
        "file_id": file.file_id,
        "file_metadata": file.file_metadata or "",
        "file_state": file.file_state,
        "job_id": job.job_id,
        "job_metadata": job.job_metadata or "",
        "job_state": job.job_state,
        "reason": file.reason or "",
        "retry_counter": file.retry,
        "retry_max": max(0, job.retry),
        "source_se": file.source_se,
        "src_url": file.source_surl,
        "staging": False,
        "staging_finished": 0,
        "staging_start": 0,
        "submit_time": int(now_s) * 1000,
        "timestamp": int(now_s * 1000),
        "user_dn": "",
        "user_filesize": file.user_filesize,
        "vo_name": job.vo_name,
    }


def complete_message(job: Job, file: File, now_s: float) -> dict[str, Any]:
    """Return the body of a CO message: one try of a file ended."""
    outcome, flag = _OUTCOMES.get(file.file_state, ("Error", 0))
    reason = file.reason or (file.retries[-1]["reason"] if file.retries and outcome == "Error" else "")
    scope, code, text = _reason_parts(reason)
    source, destination = (se.split("://", 1)[1] for se in file.link)
    ended_ms = int(now_s * 1000)
    return _CONSTANT | {
        "activity": file.activity,
        "dst_hostname": destination,
        "dst_se": file.dest_se,
        "dst_url": file.dest_surl,
        "f_size": file.filesize or 0,
        "file_id": file.file_id,
        "file_metadata": file.file_metadata or "",
        "file_size": file.filesize or 0,
        "is_recoverable": bool(file.recoverable),
        "job_id": job.job_id,
        "job_m_replica": job.job_type == "R",
        "job_metadata": job.job_metadata or "",
        "job_multihop": job.job_type == "H",
        "operation_time": int(1000 * (file.tx_duration or 0)),
        "protocol": file.source_surl.split(":", 1)[0],
        # The count of tries before this one.
        "retry": file.retry - (file.file_state == "SUBMITTED"),
        "retry_max": max(0, job.retry),
        "src_hostname": source,
        "src_se": file.source_se,
        "src_url": file.source_surl,
        "t__error_message": text,
        "t_channel": f"{source}__{destination}",
        "t_error_code": code,
        "t_failure_phase": "TRANSFER" if text else "",
        "t_final_transfer_state": outcome,
        "t_final_transfer_state_flag": flag,
        "throughput": file.throughput or 0.0,
        "timestamp_tr_comp": ended_ms,
        "timestamp_tr_st": ended_ms - int(1000 * (file.tx_duration or 0)),
        "tr_bt_transfered": file.filesize or 0,
        "tr_error_category": "",
        "tr_error_scope": scope,
        "tr_id": (file.log_file or "").rpartition("/")[2],
        "tr_timestamp_complete": ended_ms,
        "tr_timestamp_start": ended_ms - int(1000 * (file.tx_duration or 0)),
        "transfer_time": int(1000 * (file.tx_duration or 0)),
        "transfer_type": file.source_surl.split(":", 1)[0],
        "vo": job.vo_name,
    }


def _reason_parts(reason: str) -> tuple[str, int, str]:
    """Cut ``SCOPE [code] text`` apart."""
    head, bracket, text = reason.partition("] ")
    scope, _, code = head.partition(" [")
    return (scope, int(code), text) if bracket and code.isdigit() else ("", 0, reason)


class Publisher:
    """Watches an engine (as its ``on_change``) and sends messages from a thread of its own."""

    def __init__(self, broker: Broker, clock: Callable[[], float]) -> None:
        self._broker = broker
        self._clock = clock
        self._said: dict[int, tuple[str, int]] = {}
        """State and retries of each file that is under way, as last sent."""
        self._queue: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send_all, name="messages of FTS", daemon=True)
        self._thread.start()

    def changed(self, job: Job, file: File | None) -> None:
        """Send what a change of a job or file means. Only the engine's thread may call it."""
        if file is None:
            for one in job.files if job.is_final else ():
                self._said.pop(one.file_id, None)
            return
        said, now = self._said.get(file.file_id), (file.file_state, file.retry)
        if said == now or (said is None and file.is_final):
            return  # nothing new; or cancelled before it started, of which FTS does not speak
        if file.tries and (file.is_final or file.file_state == "SUBMITTED"):
            self._queue.put((COMPLETE, complete_message(job, file, self._clock())))
        self._queue.put((STATE, state_message(job, file, self._clock())))
        self._said[file.file_id] = now

    def close(self) -> None:
        """Send what is queued and hang up."""
        self._queue.put(None)
        self._thread.join(10)

    def _send_all(self) -> None:
        from stomp.exception import StompException  # noqa: PLC0415 - an optional library

        conn: Any = None
        tried_at_s = -CONNECT_EVERY_S
        while item := self._queue.get():
            topic, body = item
            try:
                if conn is None and monotonic() - tried_at_s >= CONNECT_EVERY_S:
                    tried_at_s = monotonic()
                    fresh = self._broker.connection()
                    fresh.connect(self._broker.user, self._broker.password, wait=True)
                    conn = fresh
                if conn is not None:
                    conn.send(topic, json.dumps(body) + END_OF_MESSAGE, headers=_headers(topic, body))
            except (StompException, OSError) as error:
                conn = None
                logger.warning(
                    "no message can be sent to %s: %s %s", self._broker, type(error).__name__, error
                )
        if conn is not None:
            conn.disconnect()


def _headers(topic: str, body: dict[str, Any]) -> dict[str, Any]:
    vo = {"vo": body["vo_name"]} if topic == STATE else {}
    return {
        "persistent": "true",
        "expires": body.get("timestamp", body.get("timestamp_tr_comp", 0)) + TTL_MS,
    } | vo
