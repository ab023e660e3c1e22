"""Names of files and sites: what a legal LFN is, and the id of a request.

CMS names a file once, for the whole grid (LFN, ``/store/...``); each site says where that name lives on
its storage (core.storages), and who may write where is in core.lfn_policy.
"""

from __future__ import annotations

import re
from hashlib import sha224

MAX_LFN_CHARS = 500
"""CRAB's limit for an LFN (``validateLFNs``); FTS refuses URLs over 1,100 characters with a 500."""

_LFN = re.compile(r"/store(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_+=~.\-]+)+\Z")
_SITE = re.compile(r"T[0-3]_[A-Z]{2}_[A-Za-z0-9_]+\Z")
_ADLER32 = re.compile(r"[0-9a-fA-F]{1,8}\Z")


class BadName(ValueError):
    """A name that breaks the rules; ``str()`` of it says which rule, for the person who sent it."""


def check_lfn(lfn: str) -> str:
    """Return the LFN, or raise :class:`BadName` with the rule that it breaks."""
    if len(lfn) > MAX_LFN_CHARS:
        raise BadName(f"LFN has {len(lfn)} characters; the limit is {MAX_LFN_CHARS}")
    if _LFN.match(lfn):
        return lfn
    if not lfn.startswith("/store/"):
        raise BadName(f"LFN must start with /store/: {lfn!r}")
    if any(part in ("", ".", "..") for part in lfn[1:].split("/")):
        raise BadName(f"LFN must not hold '..', '.' or empty parts: {lfn!r}")
    raise BadName(f"LFN holds a character outside A-Z a-z 0-9 _ + = ~ . - /: {lfn!r}")


def check_site(site: str) -> str:
    """Return the site name (CMS form ``T2_IT_Bari``), or raise :class:`BadName`."""
    if not _SITE.match(site):
        raise BadName(f"site name must look like T2_IT_Bari: {site!r}")
    return site


def normal_adler32(value: str) -> str:
    """Return the checksum as eight lower-case hexadecimal digits, as FTS and storages compare it.

    Submitters drop leading zeros, so shorter values are padded (CRABServer issue 7718).

    Raises:
        BadName: it is not a hexadecimal number of at most eight digits.
    """
    if not _ADLER32.match(value):
        raise BadName(f"adler32 must be 1 to 8 hexadecimal digits: {value!r}")
    return value.lower().zfill(8)


def request_id(source_lfn: str) -> str:
    """Return the id of the request for this file: CRAB's, the sha224 of the source LFN (56 hex digits)."""
    return sha224(source_lfn.encode()).hexdigest()
