"""Who may take files from where and write them where, by the LFN; and where a temporary file belongs.

Areas are those of CMS (CRAB's ``checkOutLFN`` and ``makeLFNPrefixes``, ASO's own mapping); what is in none of
them is production data and nobody's to write. Whether a person may write to a group's or a site's area is for
the storage to say: it knows groups, this service does not.

=============================  ===========  ======  ===========  ==========================================
area                           whose        source  destination  remark
=============================  ===========  ======  ===========  ==========================================
``/store/temp/user/U[.H]/``    the user's   yes     no           where jobs leave output; H: hash of his DN
``/store/temp/group/G/``       the group's  yes     no           older submitters
``/store/user/rucio/U/``       the user's   yes     yes          managed by Rucio
``/store/user/U/``             the user's   yes     yes
``/store/group/rucio/G/``      the group's  yes     yes          managed by Rucio
``/store/group/G/``            the group's  yes     yes
``/store/local/X/``            the site's   yes     yes          cannot be published
``/store/test/rucio/user/U/``  the user's   yes     yes          as ``/store/user``, for tests
``/store/test/rucio/int/user/U/``  the user's  yes  yes          as ``/store/user``, for tests
=============================  ===========  ======  ===========  ==========================================
"""

from __future__ import annotations

import re
from typing import NamedTuple

from asyncstageout.core.naming import BadName


class Area(NamedTuple):
    """A part of the namespace; the name after ``prefix`` says whose it is."""

    prefix: str
    is_users: bool
    """Whether that name is a user's, who alone may use it."""
    is_temporary: bool = False
    """Files are only taken from here; the name may carry a hash."""
    can_be_published: bool = True


# The first that fits counts.
AREAS = (
    Area("/store/temp/user/", is_users=True, is_temporary=True),
    Area("/store/temp/group/", is_users=False, is_temporary=True),
    Area("/store/user/rucio/", is_users=True),
    Area("/store/user/", is_users=True),
    Area("/store/group/rucio/", is_users=False),
    Area("/store/group/", is_users=False),
    Area("/store/local/", is_users=False, can_be_published=False),
    Area("/store/test/rucio/user/", is_users=True),
    Area("/store/test/rucio/int/user/", is_users=True),
)

_HASH = re.compile(r"\.[0-9a-f]+\Z")
"""What CRAB puts behind the user's name: the SHA-1 of his DN, group and role."""


def check_source(lfn: str, username: str) -> str:
    """Return the LFN if this user's files may be taken from there.

    Raises:
        BadName: it is somebody else's, or in no area; the sentence says which areas are his.
    """
    area, owner = _find(lfn)
    if area is None or (area.is_users and not _is_his(area, owner, username)):
        raise BadName(
            _not_his(lfn, area, owner)
            + f"; files of {username} are taken from {_homes(username, temporary=True)}"
        )
    return lfn


def check_destination(lfn: str, username: str) -> str:
    """Return the LFN if this user's files may be written there.

    Raises:
        BadName: it is temporary, somebody else's, or in no area; the sentence says which areas are his.
    """
    area, owner = _find(lfn)
    if area is None or area.is_temporary or (area.is_users and owner != username):
        raise BadName(
            _not_his(lfn, area, owner) + f"; {username} writes to {_homes(username, temporary=False)}"
        )
    return lfn


def below_temporary(lfn: str, username: str) -> str:
    """Return what follows the temporary area's own name in an LFN: ``alice.0a1b/mc/out_1.root``.

    Raises:
        BadName: it is not a file in the temporary area of this user, or of a group.
    """
    area, owner = _find(lfn)
    if area is None or not area.is_temporary:
        raise BadName(f"{lfn} is not temporary")
    if area.is_users and not _is_his(area, owner, username):
        raise BadName(f"{_not_his(lfn, area, owner)}, not {username}'s")
    return lfn.removeprefix(area.prefix)


def owner_of_folder(folder: str) -> str:
    """Return whose a folder of the temporary area is, by its name.

    >>> owner_of_folder("alice.0a1b"), owner_of_folder("alice")
    ('alice', 'alice')
    """
    return _HASH.sub("", folder)


def can_be_published(lfn: str) -> bool:
    """Say whether a file may be published under this name."""
    area, _ = _find(lfn)
    return area is not None and area.can_be_published


def owner_of(lfn: str) -> str:
    """Return whose area a file is in: a user, a group or a site; empty if it is in none.

    >>> owner_of("/store/group/higgs/out_1.root"), owner_of("/store/data/out_1.root")
    ('higgs', '')
    """
    return _find(lfn)[1]


def final_lfn(temp_lfn: str, username: str) -> str:
    """Return where a temporary file belongs if nobody said otherwise, as ASO worked it out.

    >>> final_lfn("/store/temp/user/alice.0a1b/mc/out_1.root", "alice")
    '/store/user/alice/mc/out_1.root'

    The temporary names of CRAB do not say that a file is for a group's area or Rucio's: those requests have
    to name their destination.

    Raises:
        BadName: it is not temporary.
    """
    area, owner = _find(temp_lfn)
    if area is None or not area.is_temporary:
        raise BadName(
            f"destination_lfn is needed: it only follows from a source below /store/temp/, not {temp_lfn}"
        )
    tail = temp_lfn[len(area.prefix) + len(owner) :]
    return f"/store/user/{username}{tail}" if area.is_users else f"/store/group/{owner}{tail}"


def _find(lfn: str) -> tuple[Area | None, str]:
    """Return the area and whose it is; without a file below that name there is none."""
    for area in AREAS:
        if lfn.startswith(area.prefix):
            owner, _, file = lfn.removeprefix(area.prefix).partition("/")
            return (area, owner) if owner and file else (None, "")
    return None, ""


def _is_his(area: Area, owner: str, username: str) -> bool:
    return owner == username or (area.is_temporary and _HASH.sub("", owner) == username)


def _not_his(lfn: str, area: Area | None, owner: str) -> str:
    if area is None:
        return f"{lfn} is in no area of users, groups or sites"
    if area.is_temporary and not area.is_users:
        return f"{lfn} is temporary"
    owner = _HASH.sub("", owner) if area.is_temporary else owner
    return f"{lfn} is {owner}'s{' temporary area' if area.is_temporary else ''}"


def _homes(username: str, *, temporary: bool) -> str:
    first = f"/store/temp/user/{username}.<hash>/, " if temporary else ""
    return f"{first}/store/user/{username}/, /store/user/rucio/{username}/ or /store/group/<group>/"
