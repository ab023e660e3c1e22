"""Sites over WebDAV: each verb, checksums, and no way out of a site."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from zlib import adler32

import pytest
import requests

from asyncstageout.clients.http import Access
from asyncstageout.sandbox.faults import FaultPlan, SiteFault
from asyncstageout.sandbox.fts.copying import sites_session
from asyncstageout.sandbox.sites.names import BadPath, Sites, site_host, site_pfn
from asyncstageout.sandbox.tls import SandboxTLS
from sandbox.harness import SiteBench, certificates, site_bench

BARI = f"https://{site_host('T2_IT_Bari')}"
LFN = "/store/temp/user/a.root"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> SandboxTLS:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def sites(tls: SandboxTLS, tmp_path: Path) -> Iterator[SiteBench]:
    with site_bench(tls, tmp_path, "T2_IT_Bari", "T2_DE_DESY") as served:
        yield served


@pytest.fixture
def http(tls: SandboxTLS, sites: SiteBench) -> Iterator[requests.Session]:
    with sites_session(str(tls.ca), sites.address) as session:
        yield session


def test_names() -> None:
    assert site_pfn("T2_IT_Bari", LFN) == f"davs://t2-it-bari.sandbox.test:8443{LFN}"


def test_put_get_delete(http: requests.Session, sites: SiteBench) -> None:
    content = os.urandom(700_000)
    assert http.put(BARI + LFN, data=iter([content[:100], content[100:]])).status_code == 201
    assert sites.read("T2_IT_Bari", LFN) == content
    assert http.get(BARI + LFN).content == content
    assert http.put(BARI + LFN, data=b"new").status_code == 204
    assert http.get(BARI + LFN).content == b"new"
    assert http.delete(BARI + LFN).status_code == 204
    assert http.delete(BARI + LFN).status_code == 404
    assert http.get(BARI + LFN).status_code == 404


def test_each_host_is_its_own_site(http: requests.Session, sites: SiteBench) -> None:
    sites.put("T2_IT_Bari", LFN, b"x")
    assert http.head(BARI + LFN).status_code == 200
    assert http.head(f"https://{site_host('T2_DE_DESY')}{LFN}").status_code == 404
    assert http.head(f"https://{site_host('T2_XX_Nowhere')}{LFN}").status_code == 421


def test_a_site_may_come_later(tls: SandboxTLS, tmp_path: Path) -> None:
    with site_bench(tls, tmp_path) as served, sites_session(str(tls.ca), served.address) as http:
        assert http.head(BARI + LFN).status_code == 421
        served.put("T2_IT_Bari", LFN, b"x")
        assert http.head(BARI + LFN).status_code == 200


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_digest_follows_the_content(http: requests.Session, sites: SiteBench, method: str) -> None:
    for content in (b"one", b"", b"three"):
        sites.put("T2_IT_Bari", LFN, content)
        answer = http.request(method, BARI + LFN, headers={"Want-Digest": "adler32"})
        assert answer.headers["Digest"] == f"adler32={adler32(content):08x}"
        assert answer.headers["Content-Length"] == str(len(content))
    assert "Digest" not in http.head(BARI + LFN).headers


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=0-9", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
        ("bytes=10-", 416, b""),
    ],
)
def test_ranges(http: requests.Session, sites: SiteBench, asked: str, status: int, body: bytes) -> None:
    sites.put("T2_IT_Bari", LFN, b"0123456789")
    answer = http.get(BARI + LFN, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, body)


def test_mkcol_propfind_options(http: requests.Session, sites: SiteBench) -> None:
    assert http.request("MKCOL", BARI + "/store/new").status_code == 409
    assert http.request("MKCOL", BARI + "/store").status_code == 201
    assert http.request("MKCOL", BARI + "/store").status_code == 405
    sites.put("T2_IT_Bari", "/store/a & b.root", b"12345")
    listing = http.request("PROPFIND", BARI + "/store", headers={"Depth": "1"})
    assert listing.status_code == 207
    assert "<D:href>/store/a%20%26%20b.root</D:href>" in listing.text
    assert "<D:getcontentlength>5</D:getcontentlength>" in listing.text
    alone = http.request("PROPFIND", BARI + "/store", headers={"Depth": "0"})
    assert alone.text.count("<D:response>") == 1
    assert http.request("PROPFIND", BARI + "/nothing").status_code == 404
    assert "PROPFIND" in http.options(BARI + "/store").headers["Allow"]
    assert http.delete(BARI + "/store").status_code == 409  # not empty


def test_a_storage_that_makes_no_folders(tls: SandboxTLS, tmp_path: Path) -> None:
    strict = site_bench(tls, tmp_path, "T2_IT_Bari", makes_parents=False)
    with strict as served, sites_session(str(tls.ca), served.address) as http:
        assert http.put(BARI + LFN, data=b"x").status_code == 409


@pytest.mark.parametrize(
    "path", ["/../T2_DE_DESY/store/x", "/store/../../T2_DE_DESY/store/x", "/%2e%2e/T2_DE_DESY/store/x"]
)
def test_no_way_out(tls: SandboxTLS, sites: SiteBench, path: str) -> None:
    sites.put("T2_DE_DESY", "/store/x", b"secret")
    # By hand: a well-behaved client would tidy the path.
    with _connected(tls, sites) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: t2-it-bari.sandbox.test\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 403 ")


def _connected(tls: SandboxTLS, sites: SiteBench) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(tls.ca))
    plain = socket.create_connection(("127.0.0.1", sites.port), timeout=20)
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_no_way_out_by_a_link(tmp_path: Path) -> None:
    sites = Sites(tmp_path, ["T2_IT_Bari"])
    (tmp_path / "T2_IT_Bari" / "out").symlink_to(tmp_path)
    for path in ("/out/x", "/a\0b", "/.."):
        with pytest.raises(BadPath):
            sites.file("T2_IT_Bari", path)


def test_half_an_upload_leaves_nothing(tls: SandboxTLS, sites: SiteBench, http: requests.Session) -> None:
    head = f"PUT {LFN} HTTP/1.1\r\nHost: t2-it-bari.sandbox.test\r\nContent-Length: 100\r\n\r\nhalf"
    with _connected(tls, sites) as connection:
        connection.sendall(head.encode())
    # The next answer comes from the same loop, after it has seen the end of that connection.
    assert http.get(BARI + LFN).status_code == 404
    assert http.request("PROPFIND", BARI + "/").status_code == 207


def test_faults(http: requests.Session, sites: SiteBench) -> None:
    sites.put("T2_IT_Bari", LFN, b"x")
    rules = (
        SiteFault(site="T2_IT_*", method="PUT", status=507),
        SiteFault(path="/temp/", status=403, count=1),
        SiteFault(method="HEAD", status=0),
    )
    sites.storage.faults.replace(FaultPlan(sites=rules))
    assert http.put(BARI + "/store/y", data=iter([b"1" * 300_000] * 5)).status_code == 507
    assert [http.get(BARI + LFN).status_code for _ in range(2)] == [403, 200]
    with pytest.raises(requests.ConnectionError):
        http.head(BARI + LFN, timeout=20)
    assert sites.read("T2_IT_Bari", "/store/y") is None


def test_faults_can_be_put(http: requests.Session) -> None:
    assert http.put(BARI + "/sandbox/faults", json={"sites": [{"status": 500}]}).status_code == 200
    assert http.get(BARI + LFN).status_code == 500
    assert http.get(BARI + "/.well-known/ready").text == "ready\n"
    assert http.put(BARI + "/sandbox/faults", json={"sties": []}).status_code == 400


def test_trust_is_needed(sites: SiteBench) -> None:
    with sites_session(None, sites.address) as http, pytest.raises(requests.exceptions.SSLError):
        http.get(BARI + LFN, timeout=20)
    assert Access().ca is None
