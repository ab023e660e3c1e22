"""The rules: what is looked for, how long it must hold before anybody is told, and the runbook of each."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86_400.0


class Limit(NamedTuple):
    """From where on a number is wrong."""

    value: float | None
    """None: it is not looked at until somebody says."""
    words: str


class Rule(NamedTuple):
    """One kind of thing that may need a person."""

    title: str
    severities: str
    """Of its findings, in words."""
    runbook: str
    """Name of the file in ``runbooks/``."""
    for_s: float
    """So long it must hold before anybody is told."""
    quiet_s: float = 4 * HOUR_S
    """Nobody is told again of the same subject within."""
    limit: Limit | None = None
    by_site: bool = False
    """Findings about links of one site are one alert."""
    is_off: bool = False


RULES: Mapping[str, Rule] = {
    # Airflow and the steps.
    "step-failed": Rule(
        "A step failed, and has not gone well since",
        "warning; urgent if only people can mend it",
        "failed-step.md",
        5 * MINUTE_S,
    ),
    "step-silent": Rule(
        "A step has not reported back for an hour", "warning", "silent-step.md", 0, 12 * HOUR_S
    ),
    "task-failed": Rule(
        "Airflow reports a failed task that wrote no record of its own",
        "warning",
        "failed-step.md",
        5 * MINUTE_S,
    ),
    "run-late": Rule("A run is not over at its deadline", "warning", "late-run.md", 5 * MINUTE_S),
    "nothing-collected": Rule(
        "Files wait, and no cycle has collected any for 10 minutes",
        "urgent",
        "nothing-collected.md",
        2 * MINUTE_S,
        HOUR_S,
    ),
    # FTS.
    "fts-server-down": Rule(
        "An FTS server does not answer, or does not let us in",
        "warning; urgent if no other is usable",
        "fts-server-down.md",
        5 * MINUTE_S,
    ),
    "fts-server-away": Rule(
        "People took an FTS server out of use",
        "note; urgent if no other is usable",
        "fts-server-away.md",
        0,
        DAY_S,
    ),
    "fts-server-unasked": Rule(
        "An FTS server has open jobs, and nobody asks it about them",
        "warning",
        "fts-server-unasked.md",
        5 * MINUTE_S,
    ),
    "jobs-unconfirmed": Rule(
        "FTS has not confirmed jobs for 10 minutes", "warning", "unconfirmed-jobs.md", 4 * MINUTE_S
    ),
    "jobs-unpolled": Rule("Jobs at FTS that nobody asks about", "warning", "unpolled-jobs.md", 4 * MINUTE_S),
    "jobs-unknown": Rule(
        "FTS has jobs of ours that the catalogue does not know",
        "warning",
        "unknown-fts-jobs.md",
        6 * MINUTE_S,
    ),
    "files-leaked": Rule(
        "Files without a next step, as the last stageout_reconcile counted",
        "urgent",
        "leaked-files.md",
        6 * MINUTE_S,
    ),
    "kills-hanging": Rule(
        "Killed files that FTS does not end",
        "warning",
        "kills-that-hang.md",
        4 * MINUTE_S,
        12 * HOUR_S,
        Limit(900, "seconds since the kill"),
    ),
    # Links and files.
    "link-broken": Rule(
        "Nothing starts on a link but probes",
        "note; warning after 6 hours",
        "broken-link.md",
        30 * MINUTE_S,
        12 * HOUR_S,
        by_site=True,
    ),
    "link-failing": Rule(
        "Most attempts on a link failed within the last hour",
        "warning",
        "failing-link.md",
        30 * MINUTE_S,
        12 * HOUR_S,
        Limit(0.8, "share of at least 20 attempts"),
        by_site=True,
    ),
    "files-late": Rule(
        "The oldest file of a link waits too long, and nothing holds the link back",
        "warning",
        "late-files.md",
        10 * MINUTE_S,
        12 * HOUR_S,
        Limit(6 * HOUR_S, "seconds"),
        by_site=True,
    ),
    "restriction-ending": Rule(
        "A pause, drain or ban ends within two hours", "note", "restrictions.md", 0, DAY_S
    ),
    "restriction-forgotten": Rule(
        "A pause, drain or ban without an end is older than two weeks",
        "warning",
        "restrictions.md",
        0,
        7 * DAY_S,
    ),
    # Credentials.
    "credential-ending": Rule(
        "A credential ends within a week, has ended, or cannot be used",
        "note; warning if it has ended or cannot be used",
        "credentials.md",
        10 * MINUTE_S,
        DAY_S,
    ),
    "identity-held": Rule(
        "FTS does not let an identity in, and its files wait",
        "warning",
        "credentials.md",
        15 * MINUTE_S,
        12 * HOUR_S,
    ),
    # What goes in and what follows.
    "site-description": Rule(
        "A site's description of its storage cannot be used", "note", "site-description.md", HOUR_S, DAY_S
    ),
    "intake-refused": Rule("Objects of a source were put aside", "warning", "intake.md", 0, 12 * HOUR_S),
    "publication-stuck": Rule(
        "A DBS instance takes no blocks",
        "warning",
        "publication.md",
        10 * MINUTE_S,
        limit=Limit(3600, "seconds since the oldest block was closed"),
    ),
    "cleaning-failing": Rule(
        "A storage lets nothing be deleted",
        "warning",
        "cleaning.md",
        10 * MINUTE_S,
        DAY_S,
        Limit(6 * HOUR_S, "seconds"),
    ),
    "receiver-failing": Rule(
        "A subscriber does not take what it is told",
        "warning",
        "dead-letters.md",
        10 * MINUTE_S,
        limit=Limit(3600, "seconds; at once if people must help"),
    ),
    "dead-letters": Rule(
        "Messages were refused too often, and hold later ones back", "warning", "dead-letters.md", 0, DAY_S
    ),
    # The catalogue.
    "partitions-missing": Rule(
        "Partitions of the next days are missing", "warning", "partitions.md", 10 * MINUTE_S
    ),
    "partitions-stray": Rule("Rows went into default partitions", "note", "partitions.md", HOUR_S, DAY_S),
    "statistics-missing": Rule(
        "Hours of the last week are not counted",
        "warning",
        "missing-statistics.md",
        10 * MINUTE_S,
        12 * HOUR_S,
        Limit(2 * HOUR_S, "seconds since the hour ended"),
    ),
    "database-size": Rule(
        "The catalogue's database is larger than it should be",
        "warning; urgent above 1.2 times",
        "database-size.md",
        10 * MINUTE_S,
        DAY_S,
        Limit(None, "bytes"),
    ),
    "catalogue-silent": Rule(
        "The catalogue does not answer (told without it, and not silenced)",
        "urgent",
        "catalogue-silent.md",
        4 * MINUTE_S,
        HOUR_S,
    ),
}
"""Every rule. A new one is one more line, a question in ``catalogue.attention``, and a runbook."""


class RuleInvalid(ValueError):
    """There is no such rule, or it cannot be set so."""

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        super().__init__(f"{field}: {problem}")


class RuleSettings(BaseModel):
    """What an installation wants otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    for_s: Annotated[float, Field(ge=0, le=7 * DAY_S)] | None = None
    quiet_s: Annotated[float, Field(ge=60, le=30 * DAY_S)] | None = None
    limit: Annotated[float, Field(gt=0)] | None = None
    is_off: bool | None = None


def matching(pattern: str) -> list[str]:
    """Return the names of the rules that a pattern names.

    >>> matching("partitions-*")
    ['partitions-missing', 'partitions-stray']
    """
    return [name for name in RULES if fnmatchcase(name, pattern)]


def runbook(rule: str) -> str:
    """Return the file in ``runbooks/`` of a rule; empty for one that there is no more."""
    return RULES[rule].runbook if rule in RULES else ""


def check_settings(rule: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a rule as they are kept.

    Raises:
        RuleInvalid: see there.
    """
    if rule not in RULES:
        raise RuleInvalid(rule, f"there is no such rule, but {', '.join(RULES)}")
    try:
        said = RuleSettings.model_validate(settings).model_dump(exclude_none=True)
    except ValidationError as error:
        flaw = error.errors(include_url=False, include_input=False)[0]
        raise RuleInvalid(str(flaw["loc"][0]), flaw["msg"]) from error
    if "limit" in said and RULES[rule].limit is None:
        raise RuleInvalid("limit", f"{rule} has none")
    return said


def tuned(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Rule]:
    """Return the rules as an installation wants them.

    Args:
        settings: of rules that are to be otherwise. What only a newer version knows is passed over.
    """
    return {name: _tuned(rule, settings.get(name, {})) for name, rule in RULES.items()}


def _tuned(rule: Rule, settings: Mapping[str, Any]) -> Rule:
    said = {name: value for name, value in settings.items() if name in ("for_s", "quiet_s", "is_off")}
    if rule.limit and "limit" in settings:
        said["limit"] = rule.limit._replace(value=settings["limit"])
    return rule._replace(**said)
