"""What a dataset needs before it gets blocks, and the dataset itself: made when it is not there yet.

That is dbs2go's way (``GetRecID``): nearly any word will do. Each is committed by itself, so that an
insertion which fails later leaves them behind.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from asyncstageout.sandbox.dbs import problems as codes
from asyncstageout.sandbox.dbs.lexicon import check_pattern
from asyncstageout.sandbox.dbs.problems import INVALID_PARAMETER, VALIDATION, Problem
from asyncstageout.sandbox.dbs.store import Store

_UNIX_TIME = re.compile(r"[1-9][0-9]{9}\Z")
_ABOUT = (
    "data_tier_name", "processed_ds_name", "dataset_access_type", "physics_group_name", "prep_id",
    "xtcrosssection",
)  # fmt: skip


class Needed(NamedTuple):
    """One word of the dataset's, and what is said when it can be neither found nor made."""

    kind: str
    module: str
    wanted: str
    code: int
    function: str
    pattern: str = ""


NEEDED = (
    Needed("primary_ds_type", "primarydstypes", "primary_ds_type_id for primary ds type",
           codes.PRIMARY_TYPE_MISSING, "getPrimaryDatasetTypeID"),
    Needed("primary_ds", "primarydatasets", "primary_ds_id for primary ds name",
           codes.PRIMARY_DATASET_MISSING, "getPrimaryDatasetID"),
    Needed("processing_era", "processingeras", "processing_era_id for processing version",
           codes.PROCESSING_ERA_MISSING, "getProcessingEraID"),
    Needed("acquisition_era", "acquisitioneras", "acquisition_era_id for acq era name",
           codes.ACQUISITION_ERA_MISSING, "getAcquisitionEraID"),
    Needed("tier", "tiers", "data_tier_id for tier name",
           codes.DATA_TIER_MISSING, "getDataTierID", "data_tier_name"),
    Needed("physics_group", "physicsgroups", "physics_group_id for physics group name",
           codes.PHYSICS_GROUP_MISSING, "getPhysicsGroupID"),
    Needed("access_type", "datasetaccesstypes", "dataset_access_type_id for data access type",
           codes.ACCESS_TYPE_MISSING, "getDatasetAccesssTypeID"),
    Needed("processed_ds", "processeddatasets", "processed_ds_id for procDS",
           codes.PROCESSED_DATASET_MISSING, "getProcessedDSName", "processed_ds_name"),
)  # fmt: skip


def required(function: str, *values: object) -> None:
    """Look whether something is said where something must be (dbs2go's validator tags).

    Raises:
        Problem: something is missing.
    """
    if not all(values):
        inner = Problem(VALIDATION, codes.DECODE, "", "dbs.DecodeValidatorError")
        raise inner.within(codes.VALIDATE, "", function)


def check_date(value: int, module: str) -> None:
    """Look at a date that is said; one that is not will be filled in.

    Raises:
        Problem: it is no time of these decades.
    """
    if value and not _UNIX_TIME.match(str(value)):
        message = "invalid pattern for creation date"
        inner = Problem(INVALID_PARAMETER, codes.PATTERN, message, f"dbs.{module}.Validate")
        raise inner.within(codes.VALIDATE, "", f"dbs.{module}.Insert")


def make_configurations(store: Store, record: dict[str, Any], request: str) -> None:
    """Make the configurations of the block that are not there.

    Raises:
        Problem: one is incomplete.
    """
    for config in record["dataset_conf_list"]:
        try:
            required("dbs.appexec.Insert", config["app_name"])
            required("dbs.releaseversions.Insert", config["release_version"])
            required("dbs.psethashes.Insert", config["pset_hash"])
            required("dbs.outputconfigs.Insert", config["output_module_label"], config["global_tag"])
        except Problem as error:
            outer = error.within(codes.INSERT, "", "dbs.outputconfigs.InsertOutputConfigs")
            raise outer.within(codes.INSERT, request, "dbs.bulkblocks.insertDatasetConfigurations") from error
        store.add_config(config)


def make_dataset(store: Store, record: dict[str, Any], request: str, by: str, now_s: int) -> int:
    """Return the id of the block's dataset, which is made if it is not there.

    Raises:
        Problem: something that it needs is not as it must be.
    """
    said = _words(record)
    for needed in NEEDED:
        word = said[needed.kind]
        if not store.has_word(needed.kind, word):
            _make_word(store, needed, word, _missing(needed, word, request), record)
    name = record["dataset"]["dataset"]
    found = store.dataset_id(name)
    if found is not None:
        return found
    about = {column: record["dataset"][column] for column in _ABOUT} | {
        "primary_ds_name": said["primary_ds"],
        "acquisition_era_name": said["acquisition_era"],
        "processing_version": int(said["processing_era"]),
    }
    created_at_s = record["dataset"]["creation_date"]
    _check_dataset(name, created_at_s, request)
    row = (name, json.dumps(about), created_at_s or now_s, by)
    return store.run("INSERT INTO dataset VALUES (NULL, ?, ?, ?, ?)", *row)


def _words(record: dict[str, Any]) -> dict[str, str]:
    dataset = record["dataset"]
    return {
        "primary_ds_type": record["primds"]["primary_ds_type"],
        "primary_ds": record["primds"]["primary_ds_name"],
        "processing_era": str(record["processing_era"]["processing_version"] or ""),
        "acquisition_era": record["acquisition_era"]["acquisition_era_name"],
        "tier": dataset["data_tier_name"],
        "physics_group": dataset["physics_group_name"],
        "access_type": dataset["dataset_access_type"],
        "processed_ds": dataset["processed_ds_name"],
    }


def _missing(needed: Needed, word: str, request: str) -> str:
    """Say it to the letter: one message has a comma, and a version that nobody said is zero."""
    comma = "," if needed.kind == "physics_group" else ""
    shown = word or ("0" if needed.kind == "processing_era" else "")
    return f"{request}{comma} unable to find {needed.wanted}='{shown}'"


def _make_word(store: Store, needed: Needed, word: str, missing: str, record: dict[str, Any]) -> None:
    about: dict[str, Any] = {}
    try:
        required(f"dbs.{needed.module}.Insert", word, needed.kind != "tier" or word == word.upper())
        _check_name(needed.pattern, word, needed.module)
        if needed.kind == "primary_ds":
            check_date(record["primds"]["creation_date"], needed.module)
            about = {"type": record["primds"]["primary_ds_type"]}
    except Problem as error:
        inner = error.within(codes.INSERT, "", "dbs.GetRecID")
        raise inner.within(needed.code, missing, f"dbs.bulkblocks.{needed.function}") from error
    store.add_word(needed.kind, word, about)


def _check_name(pattern: str, name: str, module: str) -> None:
    try:
        check_pattern(pattern, name)
    except Problem as error:
        inner = error.within(codes.PATTERN, "", f"dbs.{module}.Validate")
        raise inner.within(codes.VALIDATE, "", f"dbs.{module}.Insert") from error


def _check_dataset(name: str, created_at_s: int, request: str) -> None:
    try:
        _check_name("dataset", name, "datasets")
        check_date(created_at_s, "datasets")
    except Problem as error:
        inner = error.within(codes.INSERT, "", "dbs.GetRecID")
        message = f"{request} unable to insert dataset='{name}'"
        raise inner.within(codes.DATASET_MISSING, message, "dbs.bulkblocks.getDatasetID") from error
