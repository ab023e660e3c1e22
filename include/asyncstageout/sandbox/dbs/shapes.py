"""The records that dbs2go reads, and how Go's JSON decoder reads them (``dbs/bulkblocks.go``)."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any, Final

from asyncstageout.sandbox.dbs.problems import UNMARSHAL, Problem


def _fields(strings: str = "", integers: str = "", floats: str = "", **others: str) -> dict[str, str]:
    kinds = (("string", strings), ("int64", integers), ("float64", floats))
    return {name: kind for kind, names in kinds for name in names.split()} | others


_CONFIG = "release_version pset_hash pset_name app_name output_module_label global_tag create_by"
SHAPES: Final[dict[str, dict[str, str]]] = {
    "BulkBlocks": _fields(
        dataset_conf_list="[]DatasetConfig",
        file_conf_list="[]FileConfig",
        files="[]File",
        processing_era="ProcessingEra",
        primds="PrimaryDataset",
        dataset="Dataset",
        acquisition_era="AcquisitionEra",
        block="Block",
        file_parent_list="[]FileParentRecord",
        block_parent_list="[]BlockParent",
        dataset_parent_list="[]string",
        ds_parent_list="[]DatasetParent",
    ),
    "DatasetConfig": _fields(_CONFIG, "creation_date"),
    "FileConfig": _fields(f"{_CONFIG} lfn", "creation_date"),
    "FileLumi": _fields("", "lumi_section_num run_num event_count"),
    "File": _fields(
        "check_sum adler32 file_type last_modified_by logical_file_name md5",
        "file_size event_count last_modification_date is_file_valid",
        "auto_cross_section",
        file_lumi_list="[]FileLumi",
    ),
    "ProcessingEra": _fields("create_by description", "processing_version creation_date"),
    "PrimaryDataset": _fields("create_by primary_ds_type primary_ds_name", "creation_date primary_ds_id"),
    "Dataset": _fields(
        "create_by physics_group_name dataset_access_type data_tier_name last_modified_by processed_ds_name "
        "dataset prep_id",
        "creation_date last_modification_date dataset_id",
        "xtcrosssection",
    ),
    "AcquisitionEra": _fields(
        "acquisition_era_name create_by description", "start_date creation_date end_date"
    ),
    "Block": _fields(
        "create_by block_name origin_site_name last_modified_by",
        "creation_date open_for_writing file_count block_size last_modification_date block_id dataset_id",
    ),
    "FileParentRecord": _fields("this_logical_file_name logical_file_name parent_logical_file_name"),
    "BlockParent": _fields("parent_block parent_block_name this_block_name"),
    "DatasetParent": _fields("this_dataset_id parent_dataset"),
    "MigrationRequest": _fields(
        "migration_url migration_input create_by last_modified_by",
        "migration_request_id migration_status creation_date last_modification_date retry_count",
    ),
    "MigrationRemoveRequest": _fields("", "migration_rqst_id"),
}
_ZERO = {"string": "", "int64": 0, "float64": 0.0}


class _Misfit(Exception):
    """What stands there is not of the record's type; the text is that of Go's ``encoding/json``."""


def decoded(body: bytes, shape: str, function: str) -> dict[str, Any]:
    """Return the record with the zero values of Go for what is not said.

    Raises:
        Problem: the body is not such a record.
    """
    try:
        value = json.loads(body)
    except ValueError as error:
        raise Problem(_syntax(body), UNMARSHAL, "", function) from error
    try:
        record: dict[str, Any] = _read(value, shape, f"of type dbs.{shape}", "")
    except _Misfit as error:
        raise Problem(str(error), UNMARSHAL, "", function) from error
    return record


def _syntax(body: bytes) -> str:
    text = body.decode("utf-8", "replace").strip()
    if not text or text[-1] not in "]}":
        return "unexpected end of JSON input"
    return "invalid character in the JSON input"


def _read(value: Any, kind: str, where: str, path: str) -> Any:
    if kind.startswith("[]"):
        if value is None:
            return []
        if type(value) is not list:
            raise _Misfit(f"json: cannot unmarshal {_go_name(value)} into Go {where}")
        if kind == "[]FileLumi" and (packed := _packed(value)) is not None:
            return packed
        rows = [_read(item, kind[2:], where, path) for item in value]
        return _packed(rows) if kind == "[]FileLumi" else rows
    if kind in SHAPES:
        return _struct(value, kind, where, path)
    if value is None:
        return _ZERO[kind]
    fits = (
        type(value) is str
        if kind == "string"
        else type(value) is int or (kind, type(value)) == ("float64", float)
    )
    if not fits:
        raise _Misfit(f"json: cannot unmarshal {_go_name(value)} into Go {where} of type {kind}")
    return value


def _struct(value: Any, kind: str, where: str, path: str) -> dict[str, Any]:
    if value is None:
        value = {}
    if type(value) is not dict:
        raise _Misfit(f"json: cannot unmarshal {_go_name(value)} into Go value {where}")
    record = {}
    for name, of in SHAPES[kind].items():
        below = f"{path}.{name}" if path else name
        record[name] = _read(value.get(name), of, f"struct field {kind}.{below}", below)
    return record


def _packed(rows: list[Any]) -> list[Any] | None:
    """Return ``(run, lumi, events)`` of each row if nothing is wrong: there may be a hundred thousand."""
    try:
        lumis = [(row["run_num"], row["lumi_section_num"], row.get("event_count", 0)) for row in rows]
    except (KeyError, TypeError, AttributeError):
        return None
    return lumis if set(map(type, chain.from_iterable(lumis))) <= {int} else None


def _go_name(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, float):
        return f"number {value}"
    return {int: "number", str: "string", list: "array", dict: "object"}[type(value)]
