"""Callers and files with tokens, as FTS 3.13 takes them (and ``unmanaged_tokens`` of 3.14)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from asyncstageout.sandbox.fts.identity import Identities, Identity
from asyncstageout.sandbox.fts.refusals import INTERNAL_ERROR, Refused
from asyncstageout.sandbox.jwts import BadToken, UnknownIssuer, Verifier

CLAIMS = ("iss", "nbf", "exp", "scope", "aud")
_BOTH = "Both source_tokens and destination_tokens are required if one of them is present."


@dataclass(frozen=True, slots=True)
class FileTokens:
    """With what one file is read and written. Never on disk: a restart of the sandbox forgets it."""

    source: str = field(repr=False)
    destination: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Submitted:
    """What tokens have to do with one submission."""

    files: tuple[FileTokens, ...] = ()
    """For each file of the job, in order; empty: it goes with the delegated certificate."""
    managed: bool = False
    """FTS exchanges them first: files wait in TOKEN_PREP."""


class FTSTokens:
    """Who a bearer is, and which tokens a submission brings."""

    def __init__(self, verifier: Verifier, identities: Identities, audiences: Iterable[str] = ()) -> None:
        self._verifier = verifier
        self._identities = identities
        self._audiences = tuple(audiences)

    def caller(self, token: str) -> Identity | None:
        """Return whose bearer it is; a bad one is nobody's, and FTS does not say why."""
        try:
            claims = self._verifier.verified(token)
        except BadToken:
            return None
        if not claims.is_for(*self._audiences):
            return None
        return self._identities.of_token(claims.issuer, claims.subject, claims.scopes)

    def submitted(self, body: dict[str, Any], user: Identity, bearer: str) -> Submitted:
        """Return the tokens of a submission, if its caller came with one.

        Raises:
            Refused: with the status and the text of FTS.
        """
        entries = body.get("files")
        if user.token_scopes is None or not isinstance(entries, list) or "delete" in body:
            return Submitted()
        if any(entry.get("source_tokens") or entry.get("destination_tokens") for entry in entries):
            _check_lengths(entries)
            files = tuple(tokens for entry in entries for tokens in _pairs(entry))
        else:
            files = tuple(FileTokens(bearer, bearer) for entry in entries for _ in _places(entry))
        if "params" not in body:
            raise Refused(500, INTERNAL_ERROR)
        params = body["params"] or {}
        _refuse_tape(params)
        for token in {token for tokens in files for token in (tokens.source, tokens.destination)}:
            self._check(token)
        return Submitted(files, managed=not params.get("unmanaged_tokens"))

    def _check(self, token: str) -> None:
        try:
            claims = self._verifier.unverified(token)
            for name in CLAIMS:
                if name not in claims:
                    raise Refused(400, f"Token does not contain a {name} claim")
            self._verifier.verified(token)
        except UnknownIssuer as error:
            raise Refused(400, f"Token has an {error}") from error
        except BadToken as error:
            raise Refused(400, "Failed to validate access-token") from error


def _check_lengths(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        source_tokens, destination_tokens = entry.get("source_tokens"), entry.get("destination_tokens")
        if not (source_tokens or destination_tokens):
            continue
        if not (source_tokens and destination_tokens):
            raise Refused(400, _BOTH)
        for kind, tokens in (("source", source_tokens), ("destination", destination_tokens)):
            urls = entry.get(f"{kind}s", [])
            if len(tokens) != len(urls):
                raise Refused(400, f"Length of {kind}_tokens should be equal to the length of {kind}s.")
            for url, token in zip(urls, tokens, strict=True):
                if not token:
                    raise Refused(400, f"Token for {kind} '{url}' is missing.")


def _pairs(entry: dict[str, Any]) -> list[FileTokens]:
    """The same order as that of the files that FTS makes of an entry."""
    sources, destinations = entry.get("source_tokens") or [], entry.get("destination_tokens") or []
    return [FileTokens(source, destination) for source in sources for destination in destinations]


def _places(entry: dict[str, Any]) -> range:
    return range(len(entry.get("sources") or []) * len(entry.get("destinations") or []))


def _refuse_tape(params: dict[str, Any]) -> None:
    if int(params.get("bring_online") or -1) > 0:
        raise Refused(400, "Requests to retrieve from tape using token authentication are not supported")
    if int(params.get("archive_timeout") or -1) > 0:
        raise Refused(400, "Requests to archive to tape using token authentication are not supported")
