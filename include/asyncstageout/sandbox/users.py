"""Users with certificates of their own, and the proxies that they leave with this service, as on the grid."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from asyncstageout.sandbox.proxies import write_proxy
from asyncstageout.sandbox.tls import client_certificate

FRESH = timedelta(hours=6)
"""A proxy that lasts so long is not made anew."""


def user_dn(username: str) -> str:
    """Return the DN of a user's certificate."""
    return f"/DC=test/DC=sandbox/OU=Users/CN={username}"


def put_proxies(tls: Path, folder: Path, usernames: Iterable[str]) -> int:
    """Give users certificates of the sandbox's CA, and leave a proxy of each in ``folder``; return how many.

    Args:
        tls: folder of the sandbox's certificates.
        folder: where :class:`DirectoryCredentials` looks for them: ``<username>.pem``.
    """
    made = 0
    for username in sorted(set(usernames)):
        path = folder / f"{username}.pem"
        if not _is_fresh(path):
            user = client_certificate(tls / "users", username, user_dn(username), ca=tls)
            write_proxy(path, user)
            made += 1
    return made


def _is_fresh(path: Path) -> bool:
    if not path.exists():
        return False
    ends_at = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    return ends_at - datetime.now(UTC) > FRESH
