"""Style, script and pictures of the pages, served under names that change with their content."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).parent
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Asset(NamedTuple):
    """A file as it is served."""

    name: str
    """With a part of the digest of its content: ``stageout.1a2b3c4d.css``."""
    body: bytes
    media_type: str


def _read(path: Path) -> Asset:
    body = path.read_bytes()
    digest = sha256(body).hexdigest()[:12]
    return Asset(f"{path.stem}.{digest}{path.suffix}", body, _TYPES[path.suffix])


ASSETS: Mapping[str, Asset] = {
    path.name: _read(path) for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES
}
"""By the names of the files."""
