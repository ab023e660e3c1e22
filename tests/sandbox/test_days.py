"""Made-up days: the same from the same seed, legal, unique, and with the checksums that the bytes have."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncstageout.core.naming import BadName, check_lfn, check_site
from asyncstageout.core.requests import read_requests
from asyncstageout.sandbox.days import (
    DEMO_MEDIAN_BYTES,
    FILES_PER_FOLDER,
    REAL_MEDIAN_BYTES,
    SITES,
    Day,
    DayFile,
    write_files,
)
from asyncstageout.sandbox.filling import BLOCK_BYTES, HEADER_BYTES, Filling
from asyncstageout.sandbox.sites.names import site_host

DAYS = st.builds(
    Day,
    seed=st.integers(0, 2**32),
    file_count=st.integers(0, 200),
    user_count=st.integers(1, 200),
    site_count=st.integers(2, len(SITES)),
    median_bytes=st.sampled_from((DEMO_MEDIAN_BYTES, REAL_MEDIAN_BYTES)),
    label=st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True),
)
EDGES = [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1]
EDGES += [HEADER_BYTES + BLOCK_BYTES * count + extra for count in (1, 2, 16, 40) for extra in (-1, 0, 1)]


def requests_of(day: Day) -> list[dict[str, object]]:
    return [file.request for file in day.files()]


@settings(max_examples=40, deadline=None)
@given(DAYS)
def test_every_request_of_a_day_is_legal_and_unique(day: Day) -> None:
    good, bad = read_requests(requests_of(day))
    assert not bad
    assert len({request.request_id for _, request in good}) == day.file_count
    assert len({request.destination_lfn for _, request in good}) == day.file_count
    for _, request in good:
        assert {request.source, request.destination} <= set(day.sites)
        assert request.source_lfn.startswith(f"/store/temp/user/{request.username}.")
        assert request.destination_lfn.startswith(f"/store/user/{request.username}/")
        assert f"_{request.username}_{day.label}-" in request.task


def test_days_of_the_same_people_differ_in_all_else() -> None:
    one, other = (Day(seed=seed, file_count=300, user_count=5, people=7) for seed in (1, 2))
    users = [{str(file.request["username"]) for file in day.files()} for day in (one, other)]
    assert len(users[0] | users[1]) <= 5
    assert requests_of(one) != requests_of(other)


@settings(max_examples=10, deadline=None)
@given(DAYS)
def test_the_same_seed_is_the_same_day_and_the_label_only_changes_names(day: Day) -> None:
    assert list(day.files()) == list(day.files())
    other = [file.request for file in replace(day, label="z" * 21).files()]
    for mine, theirs in zip(requests_of(day), other, strict=True):
        assert mine["source_lfn"] != theirs["source_lfn"]
        assert {mine[key] == theirs[key] for key in ("source", "destination", "size_bytes", "adler32")} == {
            True
        }


def test_more_users_than_names() -> None:
    users = {file.request["username"] for file in Day(file_count=4000, user_count=3000).files()}
    assert any(user[-1].isdigit() for user in users)
    assert all(len(user) <= 30 for user in users)


def test_another_seed_is_another_day() -> None:
    assert requests_of(Day(seed=1, file_count=20)) != requests_of(Day(seed=2, file_count=20))


def test_files_arrive_in_order_mostly_in_working_hours() -> None:
    arrivals = [file.arrives_after_s for file in Day(file_count=5000).files()]
    assert arrivals == sorted(arrivals)
    by_hour = Counter(int(arrival // 3600) for arrival in arrivals)
    assert sum(by_hour[hour] for hour in range(8, 20)) > 2 * sum(by_hour[hour] for hour in range(8))


def test_the_shape_of_a_demo() -> None:
    files = list(Day(user_count=40).files())
    assert 200e6 < sum(file.size_bytes for file in files) < 400e6
    kinds = Counter(file.request["type"] for file in files)
    assert 0.07 < kinds["log"] / len(files) < 0.13
    users = Counter(file.request["username"] for file in files).most_common()
    assert users[0][1] > 10 * users[len(users) // 2][1], "few users write most files"
    assert Counter(file.request["priority"] for file in files).most_common(1)[0][0] == 3
    destinations: dict[str, set[str]] = {}
    for file in files:
        destinations.setdefault(file.request["username"], set()).add(file.request["destination"])
    assert {len(sites) for sites in destinations.values()} <= {1, 2}


def test_lfns_are_as_crab_makes_them() -> None:
    files = list(Day(file_count=4000, user_count=1).files())
    for file in files:
        job = int(file.request["job_id"])
        parts = file.request["source_lfn"].split("/")
        is_log = file.request["type"] == "log"
        assert ("log" in parts) == is_log
        assert parts[-3 if is_log else -2] == f"{job // FILES_PER_FOLDER:04d}"
        assert parts[-1].split(".")[0].endswith(f"_{job}")


@pytest.mark.parametrize("size_bytes", EDGES)
def test_the_checksum_is_known_without_the_bytes(size_bytes: int) -> None:
    filling = Filling(5)
    content = b"".join(filling.pieces(3, size_bytes))
    assert len(content) == size_bytes
    assert filling.adler32(3, size_bytes) == f"{zlib.adler32(content):08x}"


def test_files_of_one_size_differ() -> None:
    filling = Filling(5)
    assert len({filling.adler32(number, 70_000) for number in range(1000)}) > 990


def test_the_files_on_disk_are_what_the_requests_say(tmp_path: Path) -> None:
    day = Day(file_count=60, median_bytes=20_000)
    files: list[DayFile] = list(day.files())
    written: list[int] = []
    total_bytes = write_files(files, day.filling, tmp_path, written.append)
    assert written == [file.size_bytes for file in files]
    assert total_bytes == sum(written)
    for file in files:
        content = (tmp_path / file.request["source"] / file.request["source_lfn"][1:]).read_bytes()
        assert len(content) == file.request["size_bytes"]
        assert f"{zlib.adler32(content):08x}" == file.request["adler32"]
    assert sum(1 for path in tmp_path.rglob("*") if path.is_file()) == len(files)


def test_all_sites_have_legal_names_and_hosts() -> None:
    assert len(SITES) == 60
    for site in SITES:
        check_site(site)
    assert len({site_host(site) for site in SITES}) == len(SITES)
    check_lfn("/store/temp/user/abianchi.0/x_1.root")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"site_count": 1}, ValueError),
        ({"site_count": 61}, ValueError),
        ({"user_count": 0}, ValueError),
        ({"file_count": -1}, ValueError),
        ({"label": "a_b"}, BadName),
        ({"label": ""}, BadName),
    ],
)
def test_impossible_days(changes: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        Day(**changes)  # type: ignore[arg-type]
