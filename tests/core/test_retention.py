"""How long things are kept: what may be said, and what contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest

from asyncstageout.core.retention import (
    ORDERED,
    SETTINGS,
    Retention,
    WrongRetention,
    check_retention,
    read_days,
)


def test_the_defaults_hold() -> None:
    assert check_retention({}) == Retention()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"events_days": 0}, "events_days cannot be 0: Input should be greater than or equal to 1"),
        ({"events_days": "90"}, "events_days cannot be '90': Input should be a valid integer"),
        ({"events_days": True}, "events_days cannot be True"),
        ({"events": 3}, "events cannot be 3: there are airflow_days, cycles_days"),
        ({"export_to": "s3"}, "export_to cannot be 's3'"),
        ({"export_to": "s3://bucket/\x00"}, "export_to cannot be"),
        ({"events_days": 500}, "events_days cannot be 500: history_days must not be less than events_days"),
        ({"history_days": 30}, "history_days cannot be 30: history_days must not be less than events_days"),
        ({"day_statistics_days": 300}, "day_statistics_days must not be less than hour_statistics_days"),
    ],
)
def test_what_cannot_be_says_why(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(WrongRetention) as refused:
        check_retention(settings)
    assert said in str(refused.value)


@pytest.mark.parametrize("place", ["/data/archive", "s3://bucket/aso", "file:///data", "gs://b"])
def test_places_of_exports(place: str) -> None:
    assert check_retention({"export_to": place}).export_to == place


def test_what_is_ordered_are_settings() -> None:
    assert {name for pair in ORDERED for name in pair} <= SETTINGS


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("events_days", "30", 30), ("events_days", "soon", "soon"), ("export_to", "none", None),
        ("export_to", " /data ", "/data"), ("export_conn_id", "7", "7"),
    ],
)  # fmt: skip
def test_what_a_person_writes(name: str, text: str, value: Any) -> None:
    assert read_days(name, text) == value
