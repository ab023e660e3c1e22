"""A pattern that would hold a cycle up is found before it counts, and honest ones pass."""

from __future__ import annotations

import pytest

from asyncstageout.core.storages.model import MAX_NAME_CHARS
from asyncstageout.steps.slow_patterns import SlowPattern, check_patterns

SLOW = [
    r"(a+)+$",
    r"/+store/(([a-z]+)*)/x",
    r"(x|x)*y",
    r"(a|b|ab)*c",
    r".*.*.*.*z",
    r"(.*)*x$",
    r"^/+store/(\w+\s?)+$",
    r"(.*a){20}b",
    r"(/store/[A-Za-z0-9_/.-]*)+\.root",
    r"([A-Za-z0-9]+[_.-]?)*/x",
    r"((a{1,100}){1,100}){1,100}b",
    r"(?=(a+)+$)x",
]
HONEST = [
    r".*/LoadTest07_XX_(.*)_.*_.*",
    r"^/+store/(.*1.root)",
    r"/+(store/temp/user/.*)",
    r".*\?SFN=(.*)",
    r"(/store/Test_SingleSource/.*)\.LTgenerated.T1_XX_Y.*",
    r"/+store/((?!temp)[a-z]+)/(.*)",
    r"(?:/[^/]+)+/(.*)\.root",
    r"/(.*)/(.*)/(.*)/(.*)/(.*)",
    r"/+store/(mc|data|user)/(.*)",
    r"(?P<a>x)(?P=a)[^/]*(?:y|z)+?\Z",
]


@pytest.mark.parametrize("pattern", SLOW)
def test_a_slow_pattern_is_named(pattern: str) -> None:
    with pytest.raises(SlowPattern) as caught:
        check_patterns([*HONEST[:2], pattern, HONEST[2]], MAX_NAME_CHARS)
    assert caught.value.pattern == pattern


def test_honest_patterns_pass() -> None:
    check_patterns(HONEST, MAX_NAME_CHARS)
    check_patterns([], MAX_NAME_CHARS)
