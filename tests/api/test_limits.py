"""How much one caller may ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from api.conftest import ALICE, BOB, OPERATOR
from asyncstageout.api.app import create_app
from asyncstageout.api.callers import APIHouse
from asyncstageout.api.limits import NDJSON, Buckets, Limits, Rate
from asyncstageout.api.problems import Problem
from asyncstageout.core.callers import Caller, Role

SLOW = dict.fromkeys(Role, Rate(per_second=0.5, burst=2))
TOKEN = {"Authorization": "Bearer olga"}


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_bucket_empties_and_fills_again() -> None:
    clock = Clock()
    buckets = Buckets(SLOW, clock)
    buckets.take(ALICE)
    buckets.take(ALICE)
    with pytest.raises(Problem) as refused:
        buckets.take(ALICE)
    assert (refused.value.status_code, refused.value.headers) == (429, {"Retry-After": "3"})
    buckets.take(BOB)
    clock.now_s += 2
    buckets.take(ALICE)
    with pytest.raises(Problem):
        buckets.take(ALICE)


def test_buckets_forget_who_was_not_seen_for_longest() -> None:
    buckets = Buckets(SLOW, Clock(), callers=2)
    for _ in range(2):
        buckets.take(ALICE)
    buckets.take(BOB)
    buckets.take(Caller("carol"))
    buckets.take(ALICE)  # her bucket is full again


def test_who_asks_too_often_is_told_when_to_go_on(house: APIHouse) -> None:
    clock = Clock()
    client = TestClient(create_app(replace(house, limits=Limits(rates=SLOW), clock=clock)), headers=TOKEN)
    answers = [client.get("/api/v1/servers") for _ in range(3)]
    assert [one.status_code for one in answers] == [200, 200, 429]
    assert answers[-1].headers["retry-after"] == "3"
    assert client.get("/api/v1/health").status_code == 200
    clock.now_s += int(answers[-1].headers["retry-after"])
    assert client.get("/api/v1/servers").status_code == 200


@pytest.fixture
def small(house: APIHouse) -> TestClient:
    return TestClient(
        create_app(replace(house, limits=replace(house.limits, other_body_bytes=100))), headers=TOKEN
    )


def test_a_body_that_says_it_is_too_large_is_not_read(small: TestClient) -> None:
    response = small.post("/api/v1/restrictions", json={"reason": "r" * 200})
    assert response.status_code == 413
    assert response.json()["type"].endswith("too-large")


def test_a_body_that_does_not_say_is_cut_off(small: TestClient) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"x" * 60

    headers = {"Content-Type": "application/json"}
    response = small.post("/api/v1/restrictions", content=pieces(), headers=headers)
    assert response.status_code == 413


def test_nobody_sends_a_body_before_he_says_who_he_is(small: TestClient) -> None:
    headers = {"Authorization": "", "Content-Type": "application/json"}
    assert small.post("/api/v1/restrictions", content=b"x" * 200, headers=headers).status_code == 401


@pytest.mark.parametrize("length", ["-1", "x", "١"])
def test_a_length_is_a_number(small: TestClient, length: str) -> None:
    response = small.post("/api/v1/restrictions", headers={b"Content-Length": length.encode()})
    assert response.status_code == 400


def test_each_route_has_its_size() -> None:
    limits = Limits()
    many = limits.of_body("/stageout/api/v1/transfers", NDJSON)
    assert many > limits.of_body("/stageout/api/v1/transfers", "application/json")
    assert limits.of_body("/stageout/api/v1/transfers/kill", "application/json") == limits.other_body_bytes
    assert OPERATOR.role in limits.rates
