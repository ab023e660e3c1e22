"""Metrics: true, bounded, well-formed; and everything that dashboards and rules of Prometheus ask is there."""

from __future__ import annotations

import doctest
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from psycopg import Connection
from psycopg.types.json import Jsonb
from starlette.datastructures import State

from asyncstageout.api import metrics
from asyncstageout.api.metrics import METRICS, current, reference
from asyncstageout.catalogue.counters import EDGES, LINKS, OTHER, busiest_links, counts, week
from asyncstageout.catalogue.rollups import roll_up_hour, roll_up_open
from asyncstageout.core.delays import Delay, bucket, value_s
from asyncstageout.core.planning import Link
from fixtures.catalogue import Add, record
from fixtures.receivers import subscribe
from ui.seed import fill

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
SAMPLE = re.compile(r"(?P<name>[a-z_]+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)")
LABEL = re.compile(r'([a-z]+)="((?:[^"\\]|\\.)*)"')


class Exposed(NamedTuple):
    """What the endpoint says."""

    types: dict[str, str]
    samples: dict[str, list[tuple[dict[str, str], float]]]

    def value(self, name: str, **labels: str) -> float:
        (found,) = [value for with_, value in self.samples[name] if with_ == labels]
        return found


def parsed(text: str) -> Exposed:
    """Read Prometheus's text format, and check that it is one."""
    exposed = Exposed({}, defaultdict(list))
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in exposed.types, "the samples of a metric stand together"
            exposed.types[name] = kind
        elif not line.startswith("#"):
            found = SAMPLE.fullmatch(line)
            assert found, line
            exposed.samples[found["name"]].append(
                (dict(LABEL.findall(found["labels"] or "")), float(found["value"]))
            )
    for name, samples in exposed.samples.items():
        assert len({tuple(labels.items()) for labels, _ in samples}) == len(samples), (
            f"{name}: a series twice"
        )
    return exposed


@pytest.fixture
def seeded(conn: Connection) -> Connection:
    """A catalogue in which something of everything is there."""
    fill(conn, files=300, days=9)
    subscribe(conn, "hook", ["transfer:DONE"])
    conn.execute(
        """
        INSERT INTO block (name, task_id, dataset, destination, dbs, transfer_ids, lumis, payload_bytes, size_bytes,
            oldest_at, state, closed_at)
        SELECT '/a/b/USER#1', min(id), '/a/b/USER', 'T2_CH_CERN', 'dbs_phys03', '{1}', 1, 1, 1, now(), 'CLOSED', now()
        FROM task
        """
    )
    conn.execute(
        "UPDATE cleaning SET state = 'FAILED', failed_at = now()"
        " WHERE transfer_id = (SELECT min(transfer_id) FROM cleaning)"
    )
    conn.execute(
        "INSERT INTO alert (rule, subject, state, severity, sentence, about, first_seen_at, last_seen_at, opened_at)"
        " VALUES ('files-late', 'x', 'open', 3, 's', %s, now(), now(), now())",
        (Jsonb({"kind": "nothing", "names": []}),),
    )
    conn.execute("INSERT INTO alert_channel (name, settings) VALUES ('mail', '{}')")
    conn.execute(
        "UPDATE fts_job SET state = 'SUBMITTED', open_files = 1, ended_at = NULL"
        " WHERE sid = (SELECT min(sid::text)::uuid FROM fts_job)"
    )
    conn.execute(
        "UPDATE statistic_hour SET around = %s WHERE kind = 'total'",
        (Jsonb({"publication DONE": 3, "cleaning CLEANED": 2}),),
    )
    for dag_id, task_id in (("stageout_alerts", "watch"), ("stageout_transfer", "collect")):
        conn.execute(
            "INSERT INTO step_run (dag_id, run_id, task_id, actor, ended_at, outcome)"
            " VALUES (%s, 'r', %s, 'airflow', now(), 'success')",
            (dag_id, task_id),
        )
    return conn


# --- dashboards and rules ---

OUTSIDE = {"up": {"job"}, "scrape_duration_seconds": {"job"}}
"""Prometheus's own."""
USED = re.compile(r"\b((?:stageout|scrape)_[a-z_]+|up)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
GROUPED = re.compile(r"\bby\s*\(([^)]*)\)")
LEGEND = re.compile(r"\{\{\s*([a-z_]+)\s*\}\}|\$labels\.([a-z_]+)")


class Asked(NamedTuple):
    """An expression, where it stands, and the labels that its words name."""

    where: str
    expression: str
    words: str = ""


def asked() -> Iterator[Asked]:
    for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield Asked(f"{path.name}: {panel['title']}", target["expr"], target["legendFormat"])
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                metric, label = re.fullmatch(
                    r"label_values\((\w+), (\w+)\)", variable["query"]["query"]
                ).groups()  # type: ignore[union-attr]
                yield Asked(f"{path.name}: variable {label}", f'{metric}{{{label}=""}}')
    rules = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield Asked(f"rule {rule['alert']}", rule["expr"], rule["annotations"]["summary"])


def test_dashboards_and_rules_ask_for_what_there_is(seeded: Connection) -> None:
    exposed = parsed(current(seeded, State()))
    labels = OUTSIDE | {
        name: {label for with_, _ in samples for label in with_} for name, samples in exposed.samples.items()
    }
    seen = set()
    for one in asked():
        used = USED.findall(one.expression)
        assert used, one
        there: set[str] = set()
        for name, matchers in used:
            assert name in labels, f"{one.where}: there is no metric {name}"
            wanted = set(MATCHER.findall(matchers))
            assert wanted <= labels[name], f"{one.where}: {name} has no label {wanted - labels[name]}"
            there |= labels[name]
            seen.add(name)
            for label, value in re.findall(r'([a-z_]+)="([a-z_A-Z]+)"', matchers):
                if name not in OUTSIDE:
                    values = {with_[label] for with_, _ in exposed.samples[name]}
                    assert value in values or name == "stageout_fts_jobs", (
                        f"{one.where}: {label} is never {value}"
                    )
        groups = {label.strip() for group in GROUPED.findall(one.expression) for label in group.split(",")}
        named = {first or second for first, second in LEGEND.findall(one.words)}
        assert groups <= there, f"{one.where}: by {groups - there}"
        assert named <= there | groups, f"{one.where}: its words name {named - there}"
    families = {
        metrics.family(name.removeprefix("stageout_")) for name in seen if name.startswith("stageout_")
    }
    unused = METRICS.keys() - families
    assert (
        unused == {"files_ended_recently", "counters_since_timestamp_seconds", "file_bytes_total"} - families
    ), unused


def test_dashboards_are_such_as_grafana_takes() -> None:
    boards = [json.loads(path.read_text()) for path in (DEPLOY / "grafana/dashboards").glob("*.json")]
    assert len({board["uid"] for board in boards}) == len(boards) == 5
    for board in boards:
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                     for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
            assert not cells & taken, f"{board['title']}: {panel['title']} lies on another"
            taken |= cells
            assert panel["datasource"]["uid"] == "${datasource}"
    for path in DEPLOY.rglob("*.yml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


def test_every_rule_of_prometheus_has_a_runbook() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert (REPOSITORY / rule["annotations"]["runbook"]).is_file(), rule["alert"]


def test_every_metric_is_declared_and_explained(seeded: Connection) -> None:
    exposed = parsed(current(seeded, State()))
    assert exposed.types.keys() <= {f"stageout_{name}" for name in METRICS}
    for name, metric in METRICS.items():
        assert exposed.types.get(f"stageout_{name}", metric.kind) == metric.kind
        assert name.endswith("_total") == (metric.kind == "counter"), "Prometheus's convention"
    assert (REPOSITORY / "docs/reference/metrics.md").read_text() == reference()


def test_histograms_are_cumulative_and_agree_with_their_counts(seeded: Connection) -> None:
    exposed = parsed(current(seeded, State()))
    for name in ("stageout_delay_seconds", "stageout_link_done_seconds"):
        series: defaultdict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = defaultdict(list)
        for labels, value in exposed.samples[f"{name}_bucket"]:
            edge = float(labels.pop("le"))
            series[tuple(labels.items())].append((edge, value))
        assert series
        for key, buckets in series.items():
            assert buckets == sorted(buckets)
            assert [value for _, value in buckets] == sorted(value for _, value in buckets)
            assert buckets[-1][0] == float("inf")
            assert exposed.value(f"{name}_count", **dict(key)) == buckets[-1][1]


# --- what they count ---


def test_the_number_of_series_is_bounded(seeded: Connection) -> None:
    """Whatever links there are."""
    exposed = parsed(current(seeded, State()))
    links = {
        (labels["source"], labels["destination"])
        for labels, _ in exposed.samples["stageout_link_files_total"]
    }
    assert OTHER in links
    assert len(links) == LINKS + 1
    total = sum(
        len(samples) for name, samples in exposed.samples.items() if name.startswith("stageout_link_")
    )
    assert total <= (LINKS + 1) * (2 + 2 + 2 + len(EDGES) + 3)
    for outcome in ("done", "failed"):
        by_link = sum(value for labels, value in exposed.samples["stageout_link_attempts_total"]
                      if labels["outcome"] == outcome)  # fmt: skip
        assert by_link == exposed.value("stageout_attempts_total", outcome=outcome)


def test_counters_are_what_happened_and_only_grow(conn: Connection, add: Add, step: int) -> None:
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    add(record(1), record(2), record(3))
    conn.execute("ALTER TABLE transfer_event DISABLE TRIGGER transfer_event_append_only")
    conn.execute("UPDATE transfer_event SET at = %s", (now - timedelta(minutes=30),))
    assert parsed(current(conn, State())).value("stageout_files_total", event="arrived") == 0
    roll_up_hour(conn, now - timedelta(hours=1), step_run=step)
    first = parsed(current(conn, State()))
    assert first.value("stageout_files_total", event="arrived") == 3
    assert first.value("stageout_file_bytes_total", event="arrived") == 1001 + 1002 + 1003
    roll_up_hour(conn, now - timedelta(hours=1), step_run=step)
    assert parsed(current(conn, State())).value("stageout_files_total", event="arrived") == 3, "counted again"
    add(record(4))
    conn.execute("UPDATE transfer_event SET at = %s WHERE at > %s", (now + timedelta(seconds=1), now))
    roll_up_open(conn, now + timedelta(minutes=10), step_run=step)
    second = parsed(current(conn, State()))
    assert second.value("stageout_files_total", event="arrived") == 4
    until = second.value("stageout_counted_until_timestamp_seconds")
    assert until > first.value("stageout_counted_until_timestamp_seconds")


def row(conn: Connection, table: str, kind: str, at: datetime, *of: str, **values: Any) -> None:
    named = {
        name: 0
        for (name,) in conn.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'statistic_slice'"
            " AND data_type = 'bigint'"
        )
    } | values
    columns = ", ".join(named)
    conn.execute(
        f"INSERT INTO {table} (kind, at, subject, other, {columns})"
        f" VALUES (%s, %s, %s, %s, {', '.join(['%s'] * len(named))})",
        (kind, at, *of, *named.values()),
    )


def test_links_are_those_of_the_week_before(conn: Connection) -> None:
    monday = datetime(2026, 11, 23, tzinfo=UTC)
    conn.execute(
        "INSERT INTO rolled_hour VALUES (%s, %s, 0, now(), 1)", (monday, monday + timedelta(hours=1))
    )
    assert week(conn).start == monday
    for number in range(LINKS + 5):
        row(
            conn,
            "statistic_day",
            "link",
            monday - timedelta(days=3),
            f"a{number:02d}",
            "b",
            done_bytes=number,
        )
    row(conn, "statistic_day", "total", monday - timedelta(days=3), "", "")
    row(conn, "statistic_hour", "link", monday, "new", "b", done=7, done_bytes=10**12)
    row(conn, "statistic_hour", "total", monday, "", "", done=9, done_bytes=10**12 + 5)
    links = busiest_links(conn, monday)
    assert len(links) == LINKS
    assert links[0] == Link("a24", "b")
    assert Link("new", "b") not in links, "it would make a step in what is left of the others"
    found = {one.labels: one.value for one in counts(conn, monday, links) if one.name == "link_files_total"}
    assert found[*OTHER, "done"] == 9


def test_a_week_ends_when_its_last_hour_is_counted(conn: Connection) -> None:
    monday = datetime(2026, 11, 23, tzinfo=UTC)
    conn.execute(
        "INSERT INTO rolled_hour VALUES (%s, %s, 0, now(), 1)", (monday - timedelta(hours=1), monday)
    )
    assert week(conn).start == monday - timedelta(days=7)


def test_the_sum_of_a_histogram_is_within_its_error(conn: Connection) -> None:
    monday = datetime(2026, 11, 23, tzinfo=UTC)
    waits = [0.4, 3.0, 61.0, 4000.0]
    buckets = sorted({bucket(one): 1 for one in waits}.items())
    row(conn, "statistic_hour", "total", monday, "", "", done=4, done_after=[list(one) for one in buckets])
    found = [one for one in counts(conn, monday, []) if one.name.startswith("delay_seconds")]
    mine = [one for one in found if one.labels[0] == Delay.DONE_AFTER]
    total = next(one.value for one in mine if one.name.endswith("_sum"))
    assert total == pytest.approx(sum(waits), rel=0.1)
    assert total == sum(value_s(bucket(one)) for one in waits)
    below = {one.labels[1]: one.value for one in mine if one.name.endswith("_bucket")}
    assert list(below.values()) == [1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4]


def test_examples() -> None:
    assert doctest.testmod(metrics).failed == 0
