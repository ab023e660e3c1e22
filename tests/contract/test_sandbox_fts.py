"""The sandbox's FTS against the answers of a real FTS 3.13: same request, same situation, same answer.

Compared are the status, the kind of content, the keys, and every value but ids, times, host names and
measured numbers, of which only the type. A recording that is not used has its reason in ``NOT_APPLICABLE``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zlib import adler32

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from asyncstageout.core.states import FTS_JOB_FINAL
from asyncstageout.sandbox.fts.engine import Limits
from asyncstageout.sandbox.fts.identity import Identity
from asyncstageout.sandbox.fts.service import Options
from asyncstageout.sandbox.fts.submission import Rules
from asyncstageout.sandbox.tls import KeyPair, SandboxTLS, client_certificate
from sandbox.harness import ALICE, Bench, Clock, SiteBench, bench, caller, certificates, site_bench

RECORDINGS = Path(__file__).parent / "recordings"
FILES = {"data/g1.bin": bytes(1_000_000), "data/g2.bin": b"2" * 2_000_000}
REPLACED = (
    # The recorded storages are called se1 and se2 here as well, under the sandbox's domain.
    ("se1.local:8443", "t2-xx-se1.sandbox.test:8443"),
    ("se2.local:8444", "t2-xx-se2.sandbox.test:8443"),
    ("se1.local", "t2-xx-se1.sandbox.test"),
    ("se2.local", "t2-xx-se2.sandbox.test"),
    ("39a968d3", f"{adler32(FILES['data/g1.bin']):08x}"),
    ("147a7e94", f"{adler32(FILES['data/g2.bin']):08x}"),
)

NOT_APPLICABLE = {
    **dict.fromkeys((103, 104, 105), "root:// moves no bytes here; the sites speak WebDAV only"),
    112: "no data management (/dm): FTS is deprecating it, and nobody here calls it",
    114: "the JSON schema is published by FTS but not enforced; nobody here reads it",
    117: "a defect of that release, which refused every submission",
    133: "a copy has no process of its own that could be killed alone",
    159: "as 133: what ran when the service died is started again",
    **dict.fromkeys((134, 135, 136, 137), "no database server to stop; an API fault answers the same HTML"),
    **dict.fromkeys((142, 148, 149, 150, 151, 152, 153, 160), "with valid tokens: test_token_recordings.py"),
}

# Need nothing but the request.
AS_IT_IS = (
    1, 2, 3, 4, 7, 15, 17, 18, 20, 21, 23, 24, 25, 26, 27, 28, 30, 31,
    32, 33, 34, 36, 37, 38, 39, 40, 42, 43, 44, 45, 46, 47, 49, 50, 51, 52,
    54, 55, 57, 68, 74, 83, 106, 107, 109, 111, 124, 126, 127, 132, 140, 143, 144, 145,
    146, 155, 156, 157, 161,
)  # fmt: skip
# The status of a job: it is submitted again and brought to the recorded state.
STATUSES = (
    56, 72, 77, 88, 89, 91, 93, 94, 95, 97, 98, 99, 100, 102, 138, 141, 158, 162,
    163, 164, 165, 166, 167, 168, 169, 170, 171,
)  # fmt: skip

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\Z")
_TYPE_ONLY = {
    *("throughput", "tx_duration", "pid", "hashed_id", "file_id", "submit_host", "transfer_host", "log_file"),
    *("ema", "datetime", "internal_file_params", "max_time_in_queue"),
}


class Recording:
    """One exchange with a real FTS."""

    def __init__(self, path: Path) -> None:
        text = path.read_text()
        for old, new in REPLACED:
            text = text.replace(old, new)
        found = json.loads(text)
        self.number: int = found["n"]
        self.name: str = path.stem
        self.user: str | None = found["as_user"]
        self.method: str = found["request"]["method"]
        self.path: str = found["request"]["path"]
        self.body = found["request"].get("body")
        self.headers = found["request"].get("headers") or {}
        self.status: int = found["status"]
        self.content_type: str | None = found.get("headers", {}).get("Content-Type")
        self.response = found["response"]


ALL = {r.number: r for r in (Recording(path) for path in sorted(RECORDINGS.glob("*.json")))}


def normal(value: Any, key: str = "") -> Any:
    """Return what must be equal of a value."""
    if isinstance(value, dict):
        return {name: normal(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [normal(inner) for inner in value]
    if key in _TYPE_ONLY and value is not None:
        return "number" if isinstance(value, int | float) else type(value).__name__
    return _normal_text(value) if isinstance(value, str) else value


def _normal_text(text: str) -> str:
    if text.startswith("-----BEGIN"):
        return text.partition("\n")[0]
    text = "<time>" if _TIME.match(text) else _UUID.sub("<uuid>", text)
    # FTS shows its database's rows: job ids and random numbers.
    return re.sub(r"\(\d+, (\d)", r"(<hash>, \1", text) if "Duplicate entry" in text else text


def check(recording: Recording, answer: Any, response: Any = None) -> None:
    """Compare an answer with the recorded one, or with ``response``."""
    wanted = recording.response if response is None else response
    assert answer.status_code == recording.status, answer.text
    is_json = not isinstance(wanted, str) or (recording.content_type or "").startswith("application/json")
    kind = answer.headers.get("Content-Type", "").partition(";")[0]
    if recording.status != 204:
        assert kind == (recording.content_type or "text/html").partition(";")[0]
    assert normal(answer.json() if is_json else answer.text) == normal(wanted)


def ask(at: Bench, recording: Recording, *, path: str | None = None) -> Any:
    headers = recording.headers
    if recording.method == "POST" and isinstance(recording.body, str):
        headers = {"Content-Type": "application/json", **headers}
    return at.ask(recording.user, recording.method, path or recording.path, recording.body, headers=headers)


def body_of(job: dict[str, Any]) -> dict[str, Any]:
    """Return a submission that makes the recorded job."""
    grouped: dict[int, list[dict[str, Any]]] = {}
    for file in job["files"]:
        grouped.setdefault(file["file_index"], []).append(file)
    files = [
        {
            "sources": list(dict.fromkeys(f["source_surl"] for f in group)),
            "destinations": list(dict.fromkeys(f["dest_surl"] for f in group)),
            "checksum": None if group[0]["checksum"] == "ADLER32" else group[0]["checksum"],
            "filesize": group[0]["user_filesize"],
            "metadata": group[0]["file_metadata"],
        }
        for group in grouped.values()
    ]
    names = ("retry", "retry_delay", "priority", "verify_checksum", "job_metadata")
    params = {name: job[name] for name in names} | {"overwrite": job["overwrite_flag"] == "Y"}
    return {"files": files, "params": params}


# -- where it happens ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> SandboxTLS:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def sites(tls: SandboxTLS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteBench]:
    with site_bench(tls, tmp_path_factory.mktemp("sites"), "T2_XX_SE1", "T2_XX_SE2") as served:
        for name, content in FILES.items():
            served.put("T2_XX_SE1", name, content)
        yield served


@pytest.fixture(scope="module")
def shared(tls: SandboxTLS, sites: SiteBench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """For what does not depend on what else is there."""
    options = Options(state=tmp_path_factory.mktemp("fts"), connect_to=sites.address)
    with bench(tls, tls.ca.parent, options) as made:
        yield made


@pytest.fixture
def fresh(tls: SandboxTLS, tmp_path: Path) -> Iterator[Bench]:
    with bench(tls, tls.ca.parent, Options(state=tmp_path, with_bytes=False)) as made:
        yield made


@pytest.fixture
def delegating(tls: SandboxTLS, tmp_path: Path) -> Iterator[Bench]:
    options = Options(state=tmp_path, with_bytes=False, require_delegation=True)
    with bench(tls, tls.ca.parent, options) as made:
        yield made


def mock(number: int, *, time: int = 1) -> dict[str, Any]:
    source, dest = f"mock://a.local/x/src{number}?size=1000", f"mock://b.local/x/dst{number}"
    return {"sources": [source], "destinations": [f"{dest}?size_post=1000&time={time}"]}


# -- every recording has its place -----------------------------------------------------------------


def test_every_recording_is_used_or_has_a_reason() -> None:
    used = {int(name) for function in OWN_TESTS for name in re.findall(r"\d+", function.__name__)}
    assert used | {*AS_IT_IS, *STATUSES, *NOT_APPLICABLE} == set(ALL)


@pytest.mark.parametrize("number", AS_IT_IS, ids=lambda number: ALL[number].name)
def test_answers_as_recorded(shared: Bench, number: int) -> None:
    recording = ALL[number]
    check(recording, ask(shared, recording))


@pytest.mark.parametrize("number", STATUSES, ids=lambda number: ALL[number].name)
def test_reaches_the_recorded_state(shared: Bench, sites: SiteBench, number: int) -> None:
    recording = ALL[number]
    job = recording.response
    _prepare_destination(sites, number)
    shared.ask("host", "DELETE", "/jobs/all")
    shared.tick(10)
    body = body_of(job) if "files" in job else {"files": [mock(number, time=60)], "params": {}}
    if number == 158:
        body["params"] |= {"bring_online": 3600, "copy_pin_lifetime": 3600}
    job_id = shared.submit(body)
    shared.tick()
    if number in (72, 77):
        shared.ask("alice", "DELETE", f"/jobs/{job_id}")
    if job["job_state"] in FTS_JOB_FINAL and number not in (72, 77):
        shared.finish(job_id)
    if number == 158:
        job = {**job, "bring_online": 3600, "copy_pin_lifetime": 3600}
    answer = ask(shared, recording, path=recording.path.replace(job["job_id"], job_id))
    check(recording, answer, job)


def _prepare_destination(sites: SiteBench, number: int) -> None:
    """098, 099 and 168 find a file at the destination; the others must not."""
    for file in ALL[number].response.get("files", []):
        dest = file["dest_surl"]
        if "sandbox.test" in dest:
            path = sites.root / "T2_XX_SE2" / dest.partition(":8443/")[2]
            path.unlink(missing_ok=True)
            if number in (98, 99, 168):
                sites.put("T2_XX_SE2", dest.partition(":8443/")[2], b"old")


# -- identity and delegation -----------------------------------------------------------------------


def test_5_a_proxy_is_its_owner(shared: Bench, tls: SandboxTLS, tmp_path: Path) -> None:
    alice = client_certificate(tls.ca.parent, "alice", ALICE)
    session = caller(tls, _proxy(alice, tmp_path))
    check(ALL[5], session.get(shared.url + "/whoami", timeout=20))


def test_6_host_without_vo() -> None:
    host = Identity(
        ("/DC=test/DC=fts/CN=localhost",), ("baef18d8986c7c5e",), "baef18d8986c7c5e", is_root=True
    )
    assert host.whoami() == ALL[6].response


def _proxy(owner: KeyPair, directory: Path, key: ec.EllipticCurvePublicKey | None = None) -> KeyPair:
    """Make an RFC 3820 proxy, as voms-proxy-init does."""
    issuer = x509.load_pem_x509_certificate(owner.cert.read_bytes())
    signer = serialization.load_pem_private_key(owner.key.read_bytes(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    own = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    inherit_all = bytes.fromhex("300c300a06082b06010505071501")
    proxy = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([*issuer.subject, x509.NameAttribute(NameOID.COMMON_NAME, "1703023753")]))
        .issuer_name(issuer.subject)
        .public_key(key or own.public_key())
        .serial_number(1703023753)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=12))
        .add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14"), inherit_all),
            critical=True,
        )
        .sign(signer, hashes.SHA256())
    )
    pair = KeyPair(directory / "proxy.pem", directory / "proxy.key")
    pair.cert.write_bytes(proxy.public_bytes(serialization.Encoding.PEM) + owner.cert.read_bytes())
    private = own.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pair.key.write_bytes(private)
    return pair


@pytest.mark.parametrize("number", [8, 10, 12, 13, 14], ids=lambda number: ALL[number].name)
def test_8_10_12_13_14_before_delegation(delegating: Bench, number: int) -> None:
    if number == 14:
        ask(delegating, ALL[13])
    check(ALL[number], ask(delegating, ALL[number]))


@pytest.mark.parametrize(("number", "left_s"), [(11, 43200), (129, 1800), (131, -600)])
def test_11_129_131_with_a_delegation_that_ends(delegating: Bench, number: int, left_s: int) -> None:
    end = datetime.fromtimestamp(delegating.clock.now_s + left_s, UTC)
    alice = Identity((ALICE,), ("testvo",), "09a4d1c5b96b1aa8")
    delegating.fts.call(lambda: delegating.fts.delegations.set_end(alice, end))
    check(ALL[number], ask(delegating, ALL[number]))


def test_delegation_from_request_to_submission(delegating: Bench, tls: SandboxTLS, tmp_path: Path) -> None:
    dlg_id = delegating.ask("alice", "GET", "/whoami").json()["delegation_id"]
    body = {"files": [mock(1)], "params": {}}
    assert delegating.ask("alice", "POST", "/jobs", body).status_code == 419
    answer = delegating.ask("alice", "GET", f"/delegation/{dlg_id}/request")
    assert answer.headers["X-Delegation-ID"] == dlg_id
    wanted: Any = x509.load_pem_x509_csr(answer.content).public_key()
    alice = client_certificate(tls.ca.parent, "alice", ALICE)
    path = f"/delegation/{dlg_id}/credential"
    wrong = delegating.ask("alice", "PUT", path, _proxy(alice, tmp_path).cert.read_text())
    assert wrong.status_code == 400
    right = delegating.ask("alice", "PUT", path, _proxy(alice, tmp_path, wanted).cert.read_text())
    assert right.status_code == 201
    # The proxy's life is in real time, the clock of the service stands still: bring them together.
    delegating.clock.now_s = datetime.now(UTC).timestamp()
    assert delegating.ask("alice", "POST", "/jobs", body).status_code == 200
    assert delegating.ask("alice", "DELETE", f"/delegation/{dlg_id}").status_code == 204
    assert delegating.ask("alice", "POST", "/jobs", body).status_code == 419


# -- submissions that depend on others -------------------------------------------------------------


def test_19_sid_taken(fresh: Bench) -> None:
    check(ALL[18], ask(fresh, ALL[18]))
    check(ALL[19], ask(fresh, ALL[19]))
    job_id = ALL[18].response["job_id"]
    fresh.finish(job_id)
    check(ALL[19], ask(fresh, ALL[19]))  # also when the job is over
    source = ALL[18].body["files"][0]["sources"][0]
    assert fresh.status(job_id, "source_surl")["files"] == [{"source_surl": source}]


def test_108_125_bans_are_per_vo(fresh: Bench) -> None:
    check(ALL[107], ask(fresh, ALL[107]))
    check(ALL[125], ask(fresh, ALL[125]))
    assert fresh.ask("bob", "POST", "/jobs", ALL[108].body).status_code == 200
    check(ALL[109], ask(fresh, ALL[109]))
    check(ALL[108], ask(fresh, ALL[108]))


def test_118_119_120_121_123_duplicate_destinations(tls: SandboxTLS, tmp_path: Path) -> None:
    options = Options(state=tmp_path, with_bytes=False, rules=Rules(check_duplicates=True))
    with bench(tls, tls.ca.parent, options) as at:
        first = ask(at, ALL[118])
        check(ALL[118], first)
        for number in (119, 120, 121):
            check(ALL[number], ask(at, ALL[number]))
        at.ask("alice", "DELETE", f"/jobs/{first.json()['job_id']}")
        check(ALL[123], ask(at, ALL[123]))


# -- reading ---------------------------------------------------------------------------------------

UNKNOWN = "00000000-0000-0000-0000-000000000000"


def test_59_60_61_bulk(fresh: Bench) -> None:
    fresh.hold()
    one, two = (fresh.submit({"files": [mock(n)], "params": {}}) for n in (1, 2))
    check(ALL[59], ask(fresh, ALL[59], path=f"/jobs/{one},{two}"))
    check(ALL[61], ask(fresh, ALL[61], path=f"/jobs/{one},{UNKNOWN}"))
    # 060: the files were over before their job was; such a moment is made here by hand.
    three = fresh.submit(ALL[17].body)
    job = fresh.fts.engine.jobs[three]
    job.job_state = "ACTIVE"
    for file in job.files:
        file.file_state, file.reason = "FINISHED", ""
    answer = ask(fresh, ALL[60], path=f"/jobs/{one},{three}?files=file_state,reason,dest_surl")
    wanted = json.loads(json.dumps(ALL[60].response).replace("d7a614/dst1", "x/dst1"))
    check(ALL[60], answer, wanted)


def test_62_63_65_66_76_one_job(fresh: Bench) -> None:
    fresh.hold()
    job_id = fresh.submit({"files": [mock(1)], "params": {}})
    for number in (62, 63, 65, 66, 76):
        recording = ALL[number]
        old = _UUID.search(recording.path)
        assert old
        check(recording, ask(fresh, recording, path=recording.path.replace(old[0], job_id)))


def test_67_69_lists(fresh: Bench) -> None:
    done = [fresh.submit({"files": [mock(n)], "params": {}}) for n in (1, 2)]
    fresh.finish(*done)
    other = {"sources": ["mock://c.local/x?size=1"], "destinations": ["mock://d.local/y?size_post=1&time=60"]}
    fresh.submit({"files": [mock(3, time=60), other], "params": {}})
    fresh.tick(1)
    fresh.hold()
    multi = {**mock(4), "destinations": [*mock(5)["destinations"], *mock(6)["destinations"]]}
    fresh.clock.now_s += 5
    fresh.submit({"files": [multi], "params": {}})
    check(ALL[67], ask(fresh, ALL[67]))
    check(ALL[69], ask(fresh, ALL[69]))


def test_113_optimizer_knows_links(fresh: Bench) -> None:
    root = {"sources": ["root://se1.local/x"], "destinations": ["root://se2.local/y"]}
    fresh.finish(fresh.submit({"files": [mock(1), root], "params": {}}))
    shown = ask(fresh, ALL[113]).json()
    assert [{*link} for link in shown] == [{*link} for link in ALL[113].response]


@pytest.mark.parametrize("number", [115, 116])
def test_115_116_too_many_ids(fresh: Bench, number: int) -> None:
    count = {115: 150, 116: 230}[number]
    check(ALL[number], ask(fresh, ALL[number], path="/jobs/" + ",".join([UNKNOWN] * count)))


@pytest.mark.parametrize(("count", "status"), [(109, 207), (110, 404), (220, 404), (221, 414)])
def test_where_too_many_begins(fresh: Bench, count: int, status: int) -> None:
    path = "/jobs/" + ",".join([UNKNOWN] * count)
    assert fresh.ask("alice", "GET", path).status_code == status


# -- changing --------------------------------------------------------------------------------------


def test_71_73_cancel_what_runs(fresh: Bench) -> None:
    job_id = fresh.submit(body_of(ALL[72].response))
    fresh.tick()
    for number in (71, 73):
        check(ALL[number], ask(fresh, ALL[number], path=f"/jobs/{job_id}"))


def test_78_79_81_82_84_files_of_a_job(fresh: Bench) -> None:
    fresh.hold()
    job_id = fresh.submit(body_of({**ALL[84].response, "priority": 3}))
    files = fresh.status(job_id)["files"]
    first, last = files[0]["file_id"], files[2]["file_id"]
    check(ALL[78], ask(fresh, ALL[78], path=f"/jobs/{job_id}/files"))
    check(ALL[79], ask(fresh, ALL[79], path=f"/jobs/{job_id}/files/{first}"))
    check(ALL[81], ask(fresh, ALL[81], path=f"/jobs/{job_id}/files/{first},{last}"))
    check(ALL[82], ask(fresh, ALL[82], path=f"/jobs/{job_id}"))
    fresh.release()
    fresh.finish(job_id)
    columns = ALL[84].path.partition("?")[2]
    check(ALL[84], ask(fresh, ALL[84], path=f"/jobs/{job_id}?{columns}"))
    foreign = fresh.ask("alice", "DELETE", f"/jobs/{job_id}/files/17")
    assert (foreign.status_code, foreign.json()) == (200, "File does not belong to the job")


def test_85_86_a_finished_job_stays(fresh: Bench) -> None:
    job_id = fresh.submit({"files": [mock(1)], "params": {}})
    fresh.finish(job_id)
    for number in (85, 86):
        check(ALL[number], ask(fresh, ALL[number], path=f"/jobs/{job_id}"))


def test_90_retries(fresh: Bench) -> None:
    job_id = fresh.submit(body_of(ALL[89].response))
    fresh.finish(job_id)
    file_id = fresh.status(job_id)["files"][0]["file_id"]
    check(ALL[90], ask(fresh, ALL[90], path=f"/jobs/{job_id}/files/{file_id}/retries"))


def test_128_cancel_a_whole_vo(fresh: Bench) -> None:
    fresh.submit({"files": [mock(1, time=60)], "params": {}})
    fresh.tick()
    check(ALL[128], ask(fresh, ALL[128]))


OWN_TESTS: tuple[Callable[..., None], ...] = tuple(
    found for name, found in dict(globals()).items() if re.match(r"test_\d", name)
)


# -- state machines --------------------------------------------------------------------------------

SEQUENCES: tuple[tuple[str, dict[str, Any], list[str], str], ...] = (
    ("finished", mock(1), ["READY", "ACTIVE", "FINISHED"], "FINISHED"),
    (
        "retried",
        {"sources": ["mock://a/x?errno=5"], "destinations": ["mock://b/y?size_post=1"]},
        ["READY", "ACTIVE", "SUBMITTED", "READY", "ACTIVE", "FAILED"],
        "FAILED",
    ),
    (
        "not retried",
        {"sources": ["mock://a/x?errno=2"], "destinations": ["mock://b/y?size_post=1"]},
        ["READY", "ACTIVE", "FAILED"],
        "FAILED",
    ),
)


@pytest.mark.parametrize(
    ("file", "states", "job_state"), [s[1:] for s in SEQUENCES], ids=[s[0] for s in SEQUENCES]
)
def test_states_of_a_file(fresh: Bench, file: dict[str, Any], states: list[str], job_state: str) -> None:
    seen: list[str] = []

    def watch(_job: object, changed: Any) -> None:
        if changed and (not seen or seen[-1] != changed.file_state):
            seen.append(changed.file_state)

    fresh.fts.engine.on_change = watch
    fresh.hold()
    job_id = fresh.submit({"files": [file], "params": {"retry": 1, "retry_delay": 1}})
    assert fresh.status(job_id)["job_state"] == "SUBMITTED"
    fresh.release()
    for _ in range(8):
        fresh.tick(1)
    assert seen == states
    assert fresh.status(job_id)["job_state"] == job_state


def test_a_multihop_job_stops_at_its_first_failure(fresh: Bench) -> None:
    bad = {"sources": ["mock://a/x?errno=2"], "destinations": ["mock://h/x?size_post=1"]}
    job_id = fresh.submit({"files": [bad, mock(1)], "params": {"multihop": True}})
    fresh.finish(job_id)
    assert [f["file_state"] for f in fresh.status(job_id)["files"]] == ["FAILED", "NOT_USED"]
    good = fresh.submit({"files": [mock(2), mock(3)], "params": {"multihop": True}})
    fresh.finish(good)
    assert [f["file_state"] for f in fresh.status(good)["files"]] == ["FINISHED", "FINISHED"]


def test_a_finished_job_moves_to_the_archive(tls: SandboxTLS, tmp_path: Path) -> None:
    options = Options(state=tmp_path, with_bytes=False, limits=Limits(archive_after_s=60))
    with bench(tls, tls.ca.parent, options, Clock()) as at:
        body = {"files": [mock(1)], "params": {"id_generator": "deterministic", "sid": "s1"}}
        job_id = at.submit(body)
        at.finish(job_id)
        shown = at.ask("alice", "GET", f"/jobs/{job_id}").json()
        at.tick(61)
        assert at.ask("alice", "GET", f"/jobs/{job_id}").status_code == 404
        archived = at.ask("alice", "GET", f"/archive/{job_id}").json()
        assert archived["files"][0]["file_state"] == "FINISHED"
        assert archived | {"http_status": "200 Ok"} == {**shown, "files": archived["files"]}
        assert at.ask("bob", "GET", f"/archive/{job_id}").status_code == 403
        assert at.submit(body) == job_id  # its id is free again
