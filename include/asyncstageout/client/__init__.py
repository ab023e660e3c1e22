"""For users and submitting systems: hand files in, see where they are, stop them and send them again.

>>> from asyncstageout.client import Stageout
>>> with Stageout("https://stageout.example.org", token="eyJ...") as stageout:  # doctest: +SKIP
...     refused = [one for one in stageout.submit(requests) if one.outcome == "refused"]
...     stageout.wait("261122_alice_task", timeout_s=3600)
"""

from __future__ import annotations

from asyncstageout.client.errors import (
    BadAnswer,
    Busy,
    Defect,
    NeedsApproval,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    Refused,
    StageoutError,
    TooLarge,
    Unreachable,
    Untrusted,
)
from asyncstageout.client.results import (
    Acted,
    Block,
    Event,
    File,
    FileOutcome,
    Publication,
    PublishedAgain,
    Submitted,
    Task,
)
from asyncstageout.client.stageout import BATCH, NotFinished, Stageout
from asyncstageout.core.requests import TransferRequest

__all__ = [
    "BATCH",
    "Acted",
    "BadAnswer",
    "Block",
    "Busy",
    "Defect",
    "Event",
    "File",
    "FileOutcome",
    "NeedsApproval",
    "NotAllowed",
    "NotAuthenticated",
    "NotFinished",
    "NotFound",
    "Publication",
    "PublishedAgain",
    "Refused",
    "Stageout",
    "StageoutError",
    "Submitted",
    "Task",
    "TooLarge",
    "TransferRequest",
    "Unreachable",
    "Untrusted",
]
