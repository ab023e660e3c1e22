"""``aso doctor``: looks at everything that a file needs on its way, and says what to do about what is ill."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import psycopg
import requests
import typer
from cryptography import x509
from rich.markup import escape

from asyncstageout.catalogue import health
from asyncstageout.catalogue.sensing import staged_reports
from asyncstageout.catalogue.storages import site_urls
from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.options import AsJson, CatalogueURL
from asyncstageout.cli.surroundings import CONNECTION_VARIABLE, TIMEOUT_S, DBSAccess, FTSAccess, Surroundings
from asyncstageout.clients.errors import ServiceError
from asyncstageout.clients.http import Access, new_session, silence
from asyncstageout.sandbox.layout import LOOPBACK, Layout
from asyncstageout.sandbox.sites.names import DOMAIN
from asyncstageout.sandbox.state import HEALTHY

DAGS = (
    "stageout_transfer", "stageout_sense", "stageout_reconcile", "stageout_credentials", "stageout_sites",
)  # fmt: skip
CONNECTIONS = ("stageout_db", "fts3_default")
HEARTS = ("scheduler", "dag_processor", "triggerer", "metadatabase")
FEW_BYTES, TOO_FEW_BYTES = 2_000_000_000, 500_000_000
LONG_WAIT_S = 300
UNCONFIRMED_S = 120
STALE_REPORTS = timedelta(minutes=2)
DAYS_AHEAD = 2
SHORT_LIFE = timedelta(days=7)
HTTP = {"davs": "https", "dav": "http"}

CANNOT_LOOK = (
    Advice, ServiceError, psycopg.Error, OSError, LookupError, ValueError,
)  # fmt: skip
"""What looking at a broken thing raises. Anything else is a defect of the doctor."""


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"
    """It could not be looked at, because of something that failed before."""


class Finding(NamedTuple):
    level: Level
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """One check and what it found."""

    name: str
    level: Level
    text: str
    remedy: str


class Check(NamedTuple):
    name: str
    look: Callable[[Surroundings], Finding]
    remedy: str
    """What to do when it cannot be looked at."""
    needs: str | None = None
    """A check without which this one has nothing to look at."""


@app.command()
def doctor(
    *,
    catalogue_url: CatalogueURL = None,
    fts_url: Annotated[str | None, typer.Option(help="Such as https://fts3.example.org:8446.")] = None,
    fts_ca: Annotated[str | None, typer.Option(help="Certificate authorities: file or directory.")] = None,
    fts_cert: Annotated[str | None, typer.Option(help="Our certificate or proxy, PEM.")] = None,
    fts_key: Annotated[str | None, typer.Option(help="Its key, PEM.")] = None,
    dbs_url: Annotated[str | None, typer.Option(help="DBS writer, for the same certificate.")] = None,
    airflow_url: Annotated[str | None, typer.Option(help="Such as https://airflow.example.org.")] = None,
    airflow_token: Annotated[str | None, typer.Option(envvar="ASO_AIRFLOW_TOKEN")] = None,
    as_json: AsJson = False,
) -> None:
    """Check everything that a file needs on its way. The exit code is 0 when nothing failed.

    Without options it is the embedded platform that is looked at.
    """
    results = []
    patient = Surroundings(
        Layout.load(),
        given_catalogue=catalogue_url,
        given_fts=FTSAccess(fts_url, fts_ca, fts_cert, fts_key) if fts_url else None,
        given_airflow=airflow_url,
        airflow_token=airflow_token,
        given_dbs=DBSAccess(dbs_url, fts_ca, fts_cert, fts_key) if dbs_url else None,
    )
    with closing(patient):
        for result in examine(patient):
            results.append(result)
            if not as_json:
                show(result)
    is_healthy = all(result.level is not Level.FAILED for result in results)
    if as_json:
        facts = {"healthy": is_healthy, "checks": [asdict(result) for result in results]}
        sys.stdout.write(json.dumps(facts) + "\n")
    raise typer.Exit(0 if is_healthy else 1)


def examine(patient: Surroundings) -> Iterator[Result]:
    """Make every check, one after the other; what cannot be looked at says why."""
    ill: set[str] = set()
    for check in CHECKS:
        if check.needs in ill:
            finding = Finding(Level.SKIPPED, f"needs {check.needs}")
        else:
            finding = _look(check, patient)
        if finding.level in (Level.FAILED, Level.SKIPPED):
            ill.add(check.name)
        yield Result(check.name, *finding)


def show(result: Result) -> None:
    """Print one line for what was found, and one for what to do."""
    style = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}[result.level]
    console.print(f"[{style}]{result.level:<8}[/] {result.name:<16} {escape(result.text)}", soft_wrap=True)
    if result.remedy:
        console.print(f"{'':<26}{escape(result.remedy)}", soft_wrap=True)


def _look(check: Check, patient: Surroundings) -> Finding:
    try:
        return check.look(patient)
    except requests.RequestException as error:
        return Finding(Level.FAILED, silence(error).cause, check.remedy)
    except CANNOT_LOOK as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return Finding(Level.FAILED, f"{text[:300]}", check.remedy)


def _ok(text: str) -> Finding:
    return Finding(Level.OK, text)


def _warning(text: str, remedy: str) -> Finding:
    return Finding(Level.WARNING, text, remedy)


def _failed(text: str, remedy: str) -> Finding:
    return Finding(Level.FAILED, text, remedy)


def _platform(patient: Surroundings) -> Finding:
    seen = patient.platform
    if seen is None:
        elsewhere = patient.given_catalogue and patient.given_airflow
        text = f"nothing runs in {patient.layout.home}"
        return _ok(f"{text}, and nothing of it was asked for") if elsewhere else _failed(text, "`aso up`")
    ill = [f"{service.name} is {service.state}" for service in seen.services if service.state not in HEALTHY]
    if ill:
        return _failed(", ".join(ill), f"`aso status`, then its log in {patient.layout.logs}.")
    restarts = [f"{service.name} {service.restarts} times" for service in seen.services if service.restarts]
    if restarts:
        return _warning(f"started again: {', '.join(restarts)}", f"Logs: {patient.layout.logs}.")
    return _ok(f"{len(seen.services)} services healthy")


def _disk(patient: Surroundings) -> Finding:
    home = patient.layout.home
    existing = next(path for path in (home, *home.parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    text = f"{free_bytes / 1e9:,.1f} GB free in {home}"
    remedy = "Make room, move it with ASO_HOME, or start anew with `aso down --wipe`."
    if free_bytes < TOO_FEW_BYTES:
        return _failed(text, remedy)
    return _warning(text, remedy) if free_bytes < FEW_BYTES else _ok(text)


def _catalogue(patient: Surroundings) -> Finding:
    return _ok(f"Postgres {health.server_version(patient.catalogue)}")


def _schema(patient: Surroundings) -> Finding:
    # A quarter of a second, which no other command need wait for.
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    from asyncstageout.catalogue.migrate import current_revision, head_revision  # noqa: PLC0415

    try:
        current, head = current_revision(patient.catalogue_url), head_revision()
    except SQLAlchemyError as error:
        return _failed(str(error), "Check --catalogue-url.")
    if current == head:
        return _ok(f"at revision {head}")
    return _failed(f"at revision {current or 'none'}, this version wants {head}", "`aso migrate`")


def _partitions(patient: Surroundings) -> Finding:
    missing = health.missing_partitions(patient.catalogue, datetime.now(UTC).date(), DAYS_AHEAD)
    strays = health.strays(patient.catalogue)
    if missing:
        lying = f"; {strays:,} rows lie in a default partition" if strays else ""
        return _warning(
            f"missing: {', '.join(missing)}{lying}", "The next cycle of stageout_transfer mends it."
        )
    if strays:
        return _warning(
            f"{strays:,} rows lie in a default partition",
            "No harm: they came while that of their day was missing.",
        )
    return _ok(f"there for today and {DAYS_AHEAD} days ahead")


def _waiting(patient: Surroundings) -> Finding:
    waited_s = health.longest_wait_s(patient.catalogue)
    if waited_s is None:
        return _ok("no file waits for a cycle")
    text = f"the oldest file that is due waits for {waited_s:,.0f} s"
    if waited_s < LONG_WAIT_S:
        return _ok(text)
    return _warning(text, "Its link may be paused or full: the last run of stageout_transfer, step collect.")


def _unconfirmed(patient: Surroundings) -> Finding:
    count = health.unconfirmed_jobs(patient.catalogue, UNCONFIRMED_S)
    if count == 0:
        return _ok("FTS confirmed all jobs")
    return _warning(
        f"{count:,} FTS jobs are unconfirmed for over {UNCONFIRMED_S} s",
        "The next cycle submits them again; see the log of submit if their number does not fall.",
    )


def _reports(patient: Surroundings) -> Finding:
    count = staged_reports(patient.catalogue)
    applied_at = health.last_step_at(patient.catalogue, "stageout_sense", "update_catalogue")
    last = f"{applied_at:%Y-%m-%d %H:%M:%S} UTC" if applied_at else "never"
    text = f"{count:,} reports of FTS wait to be applied, last time {last}"
    if count and (applied_at is None or datetime.now(UTC) - applied_at > STALE_REPORTS):
        return _warning(text, "See the last run of stageout_sense, step update_catalogue.")
    return _ok(text)


def _connections(patient: Surroundings) -> Finding:
    missing = [name for name in CONNECTIONS if not _has_connection(patient, name)]
    if missing:
        return _failed(
            f"Airflow has no connection {' and no '.join(missing)}",
            "Add it in Airflow (Admin, Connections), or as AIRFLOW_CONN_... in its environment.",
        )
    return _ok(" and ".join(CONNECTIONS))


def _has_connection(patient: Surroundings, name: str) -> bool:
    if CONNECTION_VARIABLE.format(name.upper()) in patient.environment:
        return True
    answer = patient.airflow.get(f"{patient.airflow_url}/api/v2/connections/{name}", timeout=TIMEOUT_S)
    if answer.status_code != requests.codes.not_found:
        answer.raise_for_status()
    return answer.ok


def _fts(patient: Surroundings) -> Finding:
    try:
        access = patient.fts
    except KeyError:
        return _failed("nothing says where FTS is", "Start the platform with `aso up`, or give --fts-url.")
    with access.client() as client:
        version, me = client.version(), client.whoami()
    if me.is_anonymous:
        return _failed(
            f"FTS {version.api} takes us for nobody", "Check the certificate or token of fts3_default."
        )
    return _ok(f"{version.api} at {access.url} knows us as {me.user_dn} of {', '.join(me.vos)}")


def _credential(patient: Surroundings) -> Finding:
    cert = patient.fts.cert
    if cert is None:
        return _ok("no certificate is used")
    ends_at = x509.load_pem_x509_certificate(Path(cert).read_bytes()).not_valid_after_utc
    text = f"our certificate for FTS ends {ends_at:%Y-%m-%d %H:%M} UTC"
    if ends_at < datetime.now(UTC):
        return _failed(text, f"Renew {cert}.")
    return _warning(text, f"Renew {cert}.") if ends_at - datetime.now(UTC) < SHORT_LIFE else _ok(text)


def _dbs(patient: Surroundings) -> Finding:
    access = patient.dbs
    if access is None:
        return _warning(
            "nothing says where DBS is, so nothing is published",
            "Add the connection dbs_default in Airflow, or give --dbs-url.",
        )
    with access.client() as client:
        versions = {info.version for info in client.server_infos().values()}
    return _ok(f"{', '.join(sorted(versions))} at {access.writer}: writer, reader and migration server")


def _sites(patient: Surroundings) -> Finding:
    urls = site_urls(patient.catalogue)
    if not urls:
        return _warning("no site is configured", "`aso demo` or `aso load --day` configure the sandbox's.")
    access = Access(ca=_ca(patient), connect_to=_sandbox_addresses(urls.values()))
    with new_session(access, pool_size=16) as session, ThreadPoolExecutor(16) as pool:
        silences = list(pool.map(lambda url: _silence(session, url), urls.values()))
    problems = {site: why for site, why in zip(urls, silences, strict=True) if why}
    if not problems:
        return _ok(f"all {len(urls)} answer")
    kinds = Counter(problems.values())
    text = f"{len(problems)} of {len(urls)} do not answer: {', '.join(list(problems)[:5])}"
    return _failed(f"{text} ({kinds.most_common(1)[0][0]})", "Files from and to them are tried again later.")


def _ca(patient: Surroundings) -> str | None:
    """Return whom to trust at sites: the authorities of FTS, which knows the same grid."""
    try:
        return patient.fts.ca
    except (KeyError, ValueError):
        return None


def _sandbox_addresses(urls: Any) -> dict[str, str]:
    hosts = [urlsplit(url) for url in urls]
    return {
        host.hostname: f"{LOOPBACK}:{host.port}"
        for host in hosts
        if host.hostname and host.hostname.endswith(f".{DOMAIN}")
    }


def _silence(session: requests.Session, pfn: str) -> str | None:
    """Return why a storage gives no answer; None when it gives any, also one that refuses us."""
    url = urlsplit(pfn)
    try:
        session.head(f"{HTTP.get(url.scheme, url.scheme)}://{url.netloc}/", timeout=TIMEOUT_S).close()
    except requests.RequestException as error:
        return silence(error).cause
    return None


def _airflow(patient: Surroundings) -> Finding:
    answer = patient.airflow_health()
    ill = [
        f"{name} {'was last seen ' + seen if (seen := _last_seen(answer, name)) else 'never came'}"
        for name in HEARTS
        if (answer.get(name) or {}).get("status") != "healthy"
    ]
    if ill:
        return _failed(f"at {patient.airflow_url}: {', '.join(ill)}", "Start it, or see its log.")
    return _ok(f"all hearts beat at {patient.airflow_url}")


def _last_seen(answer: Any, name: str) -> str | None:
    return (answer.get(name) or {}).get(f"latest_{name}_heartbeat")


def _dags(patient: Surroundings) -> Finding:
    broken = patient.ask_airflow("importErrors?limit=10")
    if broken["total_entries"]:
        first = broken["import_errors"][0]
        reason = first["stack_trace"].strip().rpartition("\n")[2]
        return _failed(f"{first['filename']}: {reason}", "Mend the file; it is read again within a minute.")
    known = {dag["dag_id"]: dag for dag in patient.ask_airflow("dags?limit=100&exclude_stale=true")["dags"]}
    if missing := [dag for dag in DAGS if dag not in known]:
        return _failed(
            f"not there: {', '.join(missing)}",
            "A new file is seen after 20 s; see the dag-processor's log.",
        )
    if paused := [dag for dag in DAGS if known[dag]["is_paused"]]:
        return _warning(f"paused: {', '.join(paused)}", "Unpause them in Airflow, when that is meant.")
    return _ok(f"{', '.join(DAGS)} are there and not paused")


CHECKS = (
    Check("platform", _platform, "`aso status` tells more."),
    Check("disk", _disk, "Check the disk."),
    Check("catalogue", _catalogue, "Start the platform with `aso up`, or check --catalogue-url."),
    Check("schema", _schema, "`aso migrate`", needs="catalogue"),
    Check("partitions", _partitions, "`aso migrate`", needs="schema"),
    Check("Airflow", _airflow, "Start the platform with `aso up`, or check --airflow-url."),
    Check("DAGs", _dags, "Check the login at Airflow, or give --airflow-token.", needs="Airflow"),
    Check("connections", _connections, "Check the login at Airflow, or give --airflow-token."),
    Check("FTS", _fts, "Check that the FTS server is up, and its connection in Airflow."),
    Check("credential", _credential, "Check the certificate of the connection fts3_default.", needs="FTS"),
    Check("DBS", _dbs, "Check that DBS is up, and the connection dbs_default in Airflow."),
    Check("sites", _sites, "Check the sites' configuration.", needs="schema"),
    Check("waiting files", _waiting, "`aso migrate`", needs="schema"),
    Check("FTS jobs", _unconfirmed, "`aso migrate`", needs="schema"),
    Check("reports", _reports, "`aso migrate`", needs="schema"),
)
