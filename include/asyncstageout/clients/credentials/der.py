"""As much of DER (X.690) as proxies need beyond what ``cryptography`` reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

INTEGER, OCTETS, NULL, OBJECT_ID, TIME, SEQUENCE, SET = 0x02, 0x04, 0x05, 0x06, 0x18, 0x30, 0x31
"""Tags; ``TIME`` is GeneralizedTime."""


class Element(NamedTuple):
    """One element."""

    tag: int
    content: bytes

    def parts(self) -> list[Element]:
        """Return what a constructed element is made of.

        Raises:
            ValueError: it is not DER.
        """
        return list(elements(self.content))


def elements(data: bytes) -> Iterator[Element]:
    """Yield the elements that follow one another.

    Raises:
        ValueError: it is not DER.
    """
    at = 0
    while at < len(data):
        size = size_of(data[at:])
        if data[at] & 0x1F == 0x1F or not size or at + size > len(data):
            raise ValueError("not DER")
        yield Element(data[at], data[at + _head(data[at:]) : at + size])
        at += size


def size_of(data: bytes) -> int:
    """Return the length of the element that begins here, with its head; 0 if the head is not all there."""
    if len(data) < 2 or len(data) < _head(data):
        return 0
    return _head(data) + (data[1] if data[1] < 0x80 else int.from_bytes(data[2 : _head(data)]))


def element(tag: int, *contents: bytes) -> bytes:
    """Return an element.

    >>> element(OCTETS, b"a").hex()
    '040161'
    """
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    long = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(long)]) + long + content


def _head(data: bytes) -> int:
    return 2 if data[1] < 0x80 else 2 + (data[1] & 0x7F)
