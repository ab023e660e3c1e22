"""``POST /bulkblocks``: what dbs2go looks at, in its order, with its words (``dbs/bulkblocks2.go``)."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from asyncstageout.sandbox.dbs import problems as codes
from asyncstageout.sandbox.dbs.datasets import check_date, make_configurations, make_dataset, required
from asyncstageout.sandbox.dbs.lexicon import check_pattern
from asyncstageout.sandbox.dbs.problems import CONCURRENCY, NO_ROWS, Problem
from asyncstageout.sandbox.dbs.shapes import decoded
from asyncstageout.sandbox.dbs.store import CONFIG_COLUMNS, Store

INSERT = "dbs.bulkblocks.InsertBulkBlocksConcurrently"
MAX_LFN_CHARS = 500
_FILE_ABOUT = (
    "check_sum", "adler32", "file_size", "event_count", "file_type", "md5", "auto_cross_section",
)  # fmt: skip
_BLOCK_ABOUT = ("open_for_writing", "origin_site_name", "block_size", "file_count")


def insert_block(store: Store, body: bytes, by: str, now_s: int) -> None:
    """Insert a block with its files, in one transaction.

    Args:
        by: who is asking, for the record.

    Raises:
        Problem: it is refused. Its dataset may have been made all the same.
    """
    record = decoded(body, "BulkBlocks", INSERT)
    # By it the operators of DBS find a request in their logs.
    request = sha256(body).hexdigest()
    name = record["block"]["block_name"]
    if store.block_id(name):
        message = f"Block {name} already exists"
        raise Problem(codes.NIL, codes.BLOCK_EXISTS, message, "dbs.bulkblocks.checkBlockExist")
    parents = _parents(store, record)
    make_configurations(store, record, request)
    dataset_id = make_dataset(store, record, request, by, now_s)
    insertion = _Insertion(store, record, request, dataset_id, by, now_s, b"is_file_valid" in body)
    with store.transaction():
        insertion.run(parents)


def _parents(store: Store, record: dict[str, Any]) -> dict[str, int]:
    lfns = list(dict.fromkeys(row["parent_logical_file_name"] for row in record["file_parent_list"]))
    known = store.file_ids(lfns)
    for lfn in lfns:
        if lfn not in known:
            raise Problem(NO_ROWS, codes.DATABASE, f"unable to find parent lfn {lfn}", INSERT)
    return known


@dataclass(frozen=True, slots=True)
class _Insertion:
    store: Store
    record: dict[str, Any]
    request: str
    dataset_id: int
    by: str
    now_s: int
    says_valid: bool
    """The word is somewhere in the body: else all files are valid."""

    def run(self, parents: dict[str, int]) -> None:
        for config in self.record["dataset_conf_list"]:
            row = (self.dataset_id, self.store.config_id(config))
            self.store.run("INSERT OR IGNORE INTO dataset_config VALUES (?, ?)", *row)
        ids = self._files(self._block())
        self._file_configs(ids)
        self._file_parents(ids, parents)
        self._dataset_parents()

    def _block(self) -> int:
        block = self.record["block"]
        try:
            required("dbs.blocks.Insert", block["block_name"], block["origin_site_name"])
            check_date(block["creation_date"], "blocks")
        except Problem as error:
            inner = error.within(codes.INSERT, "", "dbs.GetRecID")
            message = f"{self.request} unable to find block_id for {block['block_name']}, error {inner.text}"
            raise inner.within(codes.GET_ID, message, INSERT) from error
        about = {name: block[name] for name in _BLOCK_ABOUT}
        about |= {
            "creation_date": block["creation_date"] or self.now_s,
            "create_by": block["create_by"] or self.by,
        }
        values = (block["block_name"], self.dataset_id, json.dumps(about))
        return self.store.run("INSERT INTO block VALUES (NULL, ?, ?, ?)", *values)

    def _files(self, block_id: int) -> dict[str, int]:
        """Insert the files. Whatever is wrong, with whichever of them, the answer is the same."""
        files = self.record["files"]
        if not all(map(_is_file, files)):
            raise self._concurrency()
        try:
            self.store.run_many(
                "INSERT INTO file VALUES (NULL, ?, ?, ?, ?, ?, ?)",
                [self._row(file, block_id) for file in files],
            )
        except sqlite3.IntegrityError as error:
            raise self._concurrency() from error
        return self.store.file_ids([file["logical_file_name"] for file in files])

    def _row(self, file: dict[str, Any], block_id: int) -> tuple[Any, ...]:
        about = {name: file[name] for name in _FILE_ABOUT}
        about |= {"creation_date": self.now_s, "create_by": file["last_modified_by"] or self.by}
        is_valid = file["is_file_valid"] if self.says_valid else 1
        lumis = json.dumps(file["file_lumi_list"], separators=(",", ":"))
        return file["logical_file_name"], block_id, self.dataset_id, is_valid, json.dumps(about), lumis

    def _concurrency(self) -> Problem:
        inner = Problem(CONCURRENCY, codes.INSERT, "", "dbs.bulkblocks.insertFilesViaChunks")
        message = f"{self.request} unable to insert files, error {inner.text}"
        return inner.within(codes.INSERT, message, INSERT)

    def _file_configs(self, ids: dict[str, int]) -> None:
        rows = []
        known: dict[tuple[str, ...], int | None] = {}
        for config in self.record["file_conf_list"]:
            key = tuple(config[name] for name in CONFIG_COLUMNS)
            if key not in known:
                known[key] = self.store.config_id(config)
            file_id, config_id = ids.get(config["lfn"]), known[key]
            if file_id is None or config_id is None:
                function = "dbs.file_output_mod_configs.InsertFileOutputModConfigs"
                inner = Problem(NO_ROWS, codes.GET_ID, "", function)
                message = f"{self.request} unable to insert file output mod config, error {inner.text}"
                raise inner.within(codes.INSERT, message, INSERT)
            rows.append((file_id, config_id))
        self.store.run_many("INSERT OR IGNORE INTO file_config VALUES (?, ?)", rows)

    def _file_parents(self, ids: dict[str, int], parents: dict[str, int]) -> None:
        rows = []
        for row in self.record["file_parent_list"]:
            lfn = row["logical_file_name"] or row["this_logical_file_name"]
            if lfn not in ids:
                message = f"no file id found for '{lfn}'"
                raise Problem("unable to locate LFN file id", codes.SESSION, message, INSERT)
            rows.append((ids[lfn], parents[row["parent_logical_file_name"]]))
        self.store.run_many("INSERT OR IGNORE INTO file_parent VALUES (?, ?)", rows)

    def _dataset_parents(self) -> None:
        names = [
            *self.record["dataset_parent_list"],
            *(row["parent_dataset"] for row in self.record["ds_parent_list"]),
        ]
        for name in dict.fromkeys(names):
            parent_id = self.store.dataset_id(name)
            if parent_id is None:
                message = f"{self.request} unable to find dataset_id for {name}, error {NO_ROWS}"
                raise Problem(NO_ROWS, codes.DATASET_PARENT_MISSING, message, INSERT)
            # A dataset that has a parent gets no second one.
            row = (self.dataset_id, parent_id)
            self.store.run("INSERT OR IGNORE INTO dataset_parent VALUES (?, ?)", *row)


def _is_file(file: dict[str, Any]) -> bool:
    try:
        check_pattern("logical_file_name", file["logical_file_name"])
    except Problem:
        return False
    said = (file["logical_file_name"], file["check_sum"], file["adler32"], file["file_type"])
    fits = len(file["logical_file_name"]) <= MAX_LFN_CHARS and file["is_file_valid"] in (0, 1)
    return all(said) and file["file_size"] > 0 and fits
