"""What surrounds the FTS: its certificates and its page for people."""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography import x509

from asyncstageout.clients.http import new_session
from asyncstageout.sandbox.fts.service import Options, SandboxFTS
from asyncstageout.sandbox.serving import certificate_dns, running, server
from asyncstageout.sandbox.tls import CLIENT_DN, client_certificate, sandbox_tls, subject_dn


def test_certificates_are_made_once_and_keys_are_private(tmp_path: Path) -> None:
    tls = sandbox_tls(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert sandbox_tls(tmp_path) == tls
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    for key in tmp_path.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert subject_dn(tls.client.cert) == CLIENT_DN
    names = x509.load_pem_x509_certificate(tls.server.cert.read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert "*.sandbox.test" in names.value.get_values_for_type(x509.DNSName)
    assert (
        subject_dn(client_certificate(tmp_path, "bob", "/DC=test/O=cms/CN=bob").cert)
        == "/DC=test/O=cms/CN=bob"
    )


def test_a_number_in_a_name_is_no_proxy() -> None:
    """CERN's people have a CN of digits; a proxy is one only under its own issuer."""
    person = ((("domainComponent", "ch"),), (("commonName", "123456"),))
    ca = ((("commonName", "CERN CA"),),)
    assert certificate_dns({"subject": person, "issuer": ca}) == ("/DC=ch/CN=123456",)
    proxy = (*person, (("commonName", "987"),))
    found = certificate_dns({"subject": proxy, "issuer": person})
    assert found == ("/DC=ch/CN=123456", "/DC=ch/CN=123456/CN=987")
    assert certificate_dns(None) == ()


def test_the_page_for_people(tmp_path: Path) -> None:
    fts = SandboxFTS(Options(state=tmp_path, with_bytes=False))
    with running(server(fts.monitor, tls=None)) as port, new_session() as http:
        url = f"http://127.0.0.1:{port}"
        html = http.get(url, timeout=20).text
        assert http.get(f"{url}/fts3/ftsmon/api/jobs", timeout=20).json() == []
        assert http.get(f"{url}/fts3/ftsmon/api/job/unknown", timeout=20).status_code == 404
    assert "<title>Sandbox FTS</title>" in html
    assert "http://" not in html
    assert "https://" not in html
    fts.close()
