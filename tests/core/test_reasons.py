"""Reasons of the same cause have the same words; those of others do not."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncstageout.core import reasons
from asyncstageout.core.reasons import MAX_CHARS, common_words
from asyncstageout.sandbox.faults import MIX


def test_examples() -> None:
    assert doctest.testmod(reasons).failed == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "SOURCE [2] davs://a.test:8443/x/1.root No such file",
            "SOURCE [2] root://b.test//y/2.root No such file",
        ),
        ("no rule for /store/user/a/1.root", "no rule for /store/temp/user/b.1c/2.log.tar.gz"),
        ("Connection to se1.example.test:2811 refused", "Connection to [2001:db8::1]:443 refused"),
        ("timed out after 3600 seconds at 12:00:01", "timed out after 7 seconds at 2026-11-27T10:00:00.123Z"),
        ("request 1f2e3d4c-0000-4000-8000-123456789abc died", "request 9876543210abcdef died"),
        ("copied 1,024 of 2,048 B", "copied 7 of 12 B"),
    ],
)
def test_what_differs_from_file_to_file_is_left_out(one: str, other: str) -> None:
    assert common_words(one) == common_words(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("copy HTTP 507 : no", "copy HTTP 403 : no"),
        ("TRANSFER [5] died", "TRANSFER [110] died"),
        ("Result curl error (56): died", "Result curl error (28): died"),
        ("status code 500", "status code 503"),
    ],
)
def test_codes_tell_causes_apart(one: str, other: str) -> None:
    assert common_words(one) != common_words(other)


def test_the_mix_of_production_has_as_many_reasons_as_kinds() -> None:
    assert len({common_words(kind.reason) for kind in MIX}) == len({kind.reason for kind in MIX})


@given(st.text(max_size=600))
@example("a" * 600)
@example("/a" * 300)
@example("0:" * 300)
def test_any_text_has_words(reason: str) -> None:
    words = common_words(reason)
    assert len(words) <= MAX_CHARS
    assert "\n" not in words
