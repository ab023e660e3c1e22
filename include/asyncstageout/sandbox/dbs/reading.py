"""What the readers of one instance answer (``dbs/datasets.go``, ``blocks.go``, ``files.go`` and others)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from asyncstageout.sandbox.dbs import problems as codes
from asyncstageout.sandbox.dbs.problems import INVALID_PARAMETER, Problem
from asyncstageout.sandbox.dbs.store import CONFIG_COLUMNS, Store

Rows = list[dict[str, Any]]
Query = Mapping[str, list[str]]

ACCEPTED: Final[Mapping[str, frozenset[str]]] = {
    "datasets": frozenset({"dataset", "dataset_access_type", "detail"}),
    "blocks": frozenset({"dataset", "block_name", "logical_file_name", "detail"}),
    "files": frozenset({"dataset", "block_name", "logical_file_name", "detail", "validFileOnly"}),
    "blockorigin": frozenset({"dataset", "block_name"}),
    "blockdump": frozenset({"block_name"}),
    "blockparents": frozenset({"block_name"}),
    "datasetparents": frozenset({"dataset"}),
    "fileparents": frozenset({"logical_file_name", "block_name"}),
    "filelumis": frozenset({"logical_file_name", "block_name"}),
    "outputconfigs": frozenset({"dataset"}),
}
"""Parameters that are heeded. A real DBS has more; here they are refused rather than passed over."""


def check_parameters(api: str, query: Query) -> None:
    """Look whether the API knows these parameters.

    Raises:
        Problem: it does not know one.
    """
    for name in query:
        if name not in ACCEPTED.get(api, {name}):
            message = f"parameter '{name}' is not accepted by '{api}' API"
            function = "dbs.parameters.CheckQueryParameters"
            raise Problem(INVALID_PARAMETER, codes.PARAMETERS, message, function, before_gzip=True)


def datasets(store: Store, query: Query) -> Rows:
    wanted = (query.get("dataset_access_type") or ["VALID"])[0]
    where, values = _where(query, {"dataset": "name"})
    found = [_dataset(store, row) for row in store.rows(f"SELECT * FROM dataset WHERE {where}", *values)]
    found = [row for row in found if wanted in ("*", row["dataset_access_type"])]
    return found if _is_true(query, "detail") else [{"dataset": row["dataset"]} for row in found]


def _dataset(store: Store, row: Any) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(row["about"])
    about["primary_ds_type"] = store.about_word("primary_ds", about["primary_ds_name"]).get("type")
    about |= {"dataset_id": row["id"], "dataset": row["name"], "creation_date": row["created_at"]}
    return about | {
        "create_by": row["created_by"],
        "last_modification_date": row["created_at"],
        "last_modified_by": row["created_by"],
    }


_BLOCKS = "SELECT b.*, d.name AS dataset FROM block b JOIN dataset d ON d.id = b.dataset_id"


def blocks(store: Store, query: Query) -> Rows:
    statement = _BLOCKS
    if query.get("logical_file_name"):
        statement += " JOIN file f ON f.block_id = b.id"
    columns = {"block_name": "b.name", "dataset": "d.name", "logical_file_name": "f.lfn"}
    where, values = _where(query, columns)
    found = store.rows(f"{statement} WHERE {where}", *values)
    if not _is_true(query, "detail"):
        return [{"block_name": row["name"]} for row in found]
    return [_block(row) for row in found]


def _block(row: Any) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(row["about"])
    names = {"block_id": row["id"], "block_name": row["name"], "dataset_id": row["dataset_id"]}
    about |= names | {"dataset": row["dataset"]}
    return about | {
        "last_modification_date": about["creation_date"],
        "last_modified_by": about["create_by"],
    }


_FILES = (
    "SELECT f.*, b.name AS block_name, d.name AS dataset FROM file f JOIN block b ON b.id = f.block_id "
    "JOIN dataset d ON d.id = f.dataset_id"
)


def files(store: Store, query: Query) -> Rows:
    if not query:
        message = "Files API with empty parameter map"
        raise Problem(INVALID_PARAMETER, codes.PARAMETERS, message, "dbs.files.Files")
    columns = {"logical_file_name": "f.lfn", "block_name": "b.name", "dataset": "d.name"}
    where, values = _where(query, columns)
    only_valid = "f.is_valid = 1" if query.get("validFileOnly") == ["1"] else "f.is_valid <> -1"
    found = store.rows(f"{_FILES} WHERE {where} AND {only_valid}", *values)
    if not _is_true(query, "detail"):
        return [{"logical_file_name": row["lfn"]} for row in found]
    return [_file(row) for row in found]


def _file(row: Any) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(row["about"])
    about |= {"file_id": row["id"], "logical_file_name": row["lfn"], "is_file_valid": row["is_valid"]}
    about |= {"block_id": row["block_id"], "block_name": row["block_name"]}
    about |= {"dataset_id": row["dataset_id"], "dataset": row["dataset"], "file_type_id": 1}
    return about | {
        "last_modification_date": about["creation_date"],
        "last_modified_by": about["create_by"],
    }


def block_origin(store: Store, query: Query) -> Rows:
    where, values = _where(query, {"block_name": "b.name", "dataset": "d.name"})
    return [_block(row) for row in store.rows(f"{_BLOCKS} WHERE {where}", *values)]


def block_parents(store: Store, query: Query) -> Rows:
    name = (query.get("block_name") or [""])[0]
    rows = store.rows(
        "SELECT DISTINCT p.name FROM block b JOIN file f ON f.block_id = b.id "
        "JOIN file_parent fp ON fp.file_id = f.id JOIN file pf ON pf.id = fp.parent_id "
        "JOIN block p ON p.id = pf.block_id WHERE b.name = ? ORDER BY p.name",
        name,
    )
    return [{"this_block_name": name, "parent_block_name": row[0]} for row in rows]


def dataset_parents(store: Store, query: Query) -> Rows:
    where, values = _where(query, {"dataset": "d.name"})
    rows = store.rows(
        "SELECT d.name, p.id, p.name AS parent FROM dataset d JOIN dataset_parent dp ON dp.dataset_id = d.id "
        f"JOIN dataset p ON p.id = dp.parent_id WHERE {where}",
        *values,
    )
    return [{"this_dataset": row[0], "parent_dataset_id": row[1], "parent_dataset": row[2]} for row in rows]


def file_parents(store: Store, query: Query) -> Rows:
    where, values = _where(query, {"logical_file_name": "f.lfn", "block_name": "b.name"})
    rows = store.rows(
        "SELECT f.lfn, p.id, p.lfn AS parent FROM file f JOIN block b ON b.id = f.block_id "
        f"JOIN file_parent fp ON fp.file_id = f.id JOIN file p ON p.id = fp.parent_id WHERE {where}",
        *values,
    )
    return [
        {"logical_file_name": row[0], "parent_file_id": row[1], "parent_logical_file_name": row[2]}
        for row in rows
    ]


def file_lumis(store: Store, query: Query) -> Rows:
    where, values = _where(query, {"logical_file_name": "f.lfn", "block_name": "b.name"})
    rows = store.rows(
        f"SELECT f.lfn, f.lumis FROM file f JOIN block b ON b.id = f.block_id WHERE {where}", *values
    )
    return [{"logical_file_name": row[0], **lumi} for row in rows for lumi in _lumis(row[1])]


def _lumis(packed: str) -> Rows:
    names = ("run_num", "lumi_section_num", "event_count")
    return [dict(zip(names, lumi, strict=True)) for lumi in json.loads(packed)]


def output_configs(store: Store, query: Query) -> Rows:
    where, values = _where(query, {"dataset": "d.name"})
    rows = store.rows(
        f"SELECT DISTINCT {', '.join(f'c.{name}' for name in CONFIG_COLUMNS)} FROM output_config c "
        "JOIN dataset_config dc ON dc.config_id = c.id JOIN dataset d ON d.id = dc.dataset_id "
        f"WHERE {where}",
        *values,
    )
    return [dict(row) for row in rows]


APIS: Final[Mapping[str, Callable[[Store, Query], Rows]]] = {
    "datasets": datasets,
    "blocks": blocks,
    "files": files,
    "blockorigin": block_origin,
    "blockparents": block_parents,
    "datasetparents": dataset_parents,
    "fileparents": file_parents,
    "filelumis": file_lumis,
    "outputconfigs": output_configs,
}


def _where(query: Query, columns: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return conditions over names: one name, one with wildcards, or a list."""
    parts, values = ["1"], []
    for name, column in columns.items():
        wanted = query.get(name) or []
        if len(wanted) == 1 and "*" in wanted[0]:
            parts.append(f"{column} GLOB ?")
        elif wanted:
            parts.append(f"{column} IN ({','.join('?' * len(wanted))})")
        values += wanted
    return " AND ".join(parts), values


def _is_true(query: Query, name: str) -> bool:
    return (query.get(name) or [""])[0].lower() in ("1", "true")


def block_dump(store: Store, block_name: str) -> dict[str, Any] | None:
    """Return a block as ``/bulkblocks`` takes it; None: there is none."""
    rows = store.rows(f"{_BLOCKS} WHERE b.name = ?", block_name)
    if not rows:
        return None
    block, name = _block(rows[0]), {"block_name": [block_name]}
    dataset = datasets(store, {"dataset": [block["dataset"]], "detail": ["1"], "dataset_access_type": ["*"]})[
        0
    ]
    configs = output_configs(store, {"dataset": [block["dataset"]]})
    inside = store.rows(f"{_FILES} WHERE b.name = ?", block_name)
    configured = store.rows(
        f"SELECT f.lfn, {', '.join(f'c.{column}' for column in CONFIG_COLUMNS)} FROM file f "
        "JOIN file_config fc ON fc.file_id = f.id JOIN output_config c ON c.id = fc.config_id "
        "JOIN block b ON b.id = f.block_id WHERE b.name = ?",
        block_name,
    )
    return {
        "dataset_conf_list": configs,
        "file_conf_list": [dict(row) for row in configured],
        "files": [_file(row) | {"file_lumi_list": _lumis(row["lumis"])} for row in inside],
        "file_parent_list": [
            {key: row[key] for key in ("logical_file_name", "parent_logical_file_name")}
            for row in file_parents(store, name)
        ],
        "block_parent_list": block_parents(store, name),
        "ds_parent_list": [
            {"parent_dataset": row["parent_dataset"]}
            for row in dataset_parents(store, {"dataset": [block["dataset"]]})
        ],
        "primds": {key: dataset[key] for key in ("primary_ds_name", "primary_ds_type")},
        "processing_era": {"processing_version": dataset["processing_version"]},
        "acquisition_era": {"acquisition_era_name": dataset["acquisition_era_name"], "start_date": 0},
        "dataset": {key: dataset[key] for key in dataset if key in _DUMPED},
        "block": block,
    }


_DUMPED = frozenset(
    {
        "dataset", "processed_ds_name", "data_tier_name", "dataset_access_type", "physics_group_name",
        "creation_date", "create_by", "prep_id", "xtcrosssection",
    }
)  # fmt: skip
