"""Proxies from a real ``myproxy-server``, into which people put theirs with ``myproxy-init``."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from asyncstageout.clients.credentials.model import (
    CredentialExpired,
    CredentialMissing,
    CredentialProblem,
    CredentialUnsafe,
    CredentialWrong,
    SourceSilent,
)
from asyncstageout.clients.credentials.myproxy import MyProxyCredentials, credential_name
from asyncstageout.clients.credentials.myproxy_protocol import MyProxyServer
from asyncstageout.clients.tls import Trust
from asyncstageout.core.identities import Identity
from asyncstageout.sandbox.proxies import write_proxy
from asyncstageout.sandbox.tls import KeyPair
from clients.grid import Grid

SERVER = Path("/usr/sbin/myproxy-server")
CONFIGURATION = """accepted_credentials "*"
authorized_retrievers "*"
default_retrievers "*"
trusted_retrievers "{trusted}"
default_trusted_retrievers "{unless_said}"
max_proxy_lifetime 48
"""
ALICE = Identity("alice", "cms")
PRODUCTION = Identity("alice", "cms", "uscms", "production")
FQANS = ("/cms/uscms/Role=production/Capability=NULL", "/cms/Role=NULL/Capability=NULL")


@dataclass
class MyProxy:
    """The server of Debian's package, started for each connection as inetd would: nothing to wait for."""

    grid: Grid
    folder: Path
    listener: socket.socket
    env: dict[str, str]
    asked: int = 0
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def serve(self) -> None:
        while True:
            try:
                line, _ = self.listener.accept()
            except OSError:
                return
            with line:
                self.asked += 1
                self.children.append(subprocess.Popen(
                    [str(SERVER), "-c", str(self.folder / "conf"), "-s", str(self.folder / "store")],
                    stdin=line, stdout=line, stderr=subprocess.DEVNULL, env=self.env,
                ))  # fmt: skip

    def put(
        self, owner: KeyPair, account: str, *options: str, hours: int = 100, passphrase: str = ""
    ) -> None:
        """Put a credential in, as its owner does on his own machine."""
        how = ["-S"] if passphrase else ["-n"]
        subprocess.run(
            ["myproxy-init", "-s", "127.0.0.1", "-p", str(self.port), "-l", account, "-c", str(hours), "-t", "24",
             "-C", str(owner.cert), "-y", str(owner.key), *how, *options],
            check=True, capture_output=True, input=passphrase.encode(),
            env=self.env | {"MYPROXY_SERVER_DN": "/DC=test/CN=localhost"},
        )  # fmt: skip

    def put_as_it_is(self, proxy: Path, account: str, *options: str) -> None:
        """Store a proxy that is there, such as one with VOMS attributes."""
        subprocess.run(
            ["myproxy-init", "-s", "127.0.0.1", "-p", str(self.port), "-l", account, "-c", "20", "-t", "20",
             "-C", str(proxy), "-y", str(proxy), "-n", *options],
            check=True, capture_output=True,
            env=self.env | {"MYPROXY_SERVER_DN": "/DC=test/CN=localhost"},
        )  # fmt: skip


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    found = Grid.make(tmp_path_factory.mktemp("grid"))
    for name, hosts in (("alice", ()), ("aso", ()), ("eve", ()), ("localhost", ("localhost",))):
        found.person(name, hosts=hosts)
    return found


def pair(grid: Grid, name: str) -> KeyPair:
    return KeyPair(grid.folder / f"{name}.pem", grid.folder / f"{name}.key")


@pytest.fixture
def myproxy(grid: Grid, tmp_path: Path) -> Iterator[MyProxy]:
    if not (SERVER.exists() and shutil.which("myproxy-init")) and not os.environ.get("CI"):
        pytest.skip("MyProxy is not installed (Debian packages myproxy-server and myproxy)")
    assert SERVER.exists(), "apt-get install myproxy-server myproxy"
    (tmp_path / "store").mkdir(mode=0o700)
    (tmp_path / "conf").write_text(CONFIGURATION.format(trusted="/DC=test/CN=aso", unless_said="*"))
    host = pair(grid, "localhost")
    env = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "X509_CERT_DIR": str(grid.directory()),
        "X509_USER_CERT": str(host.cert), "X509_USER_KEY": str(host.key),
    }  # fmt: skip
    found = MyProxy(grid, tmp_path, socket.create_server(("127.0.0.1", 0)), env)
    thread = threading.Thread(target=found.serve, daemon=True)
    thread.start()
    yield found
    with suppress(OSError):
        found.listener.shutdown(socket.SHUT_RDWR)
    found.listener.close()
    thread.join(10)
    for child in found.children:
        child.kill()
        child.wait(10)


def server(myproxy: MyProxy, who: str = "aso") -> MyProxyServer:
    mine = pair(myproxy.grid, who)
    trust = Trust(str(myproxy.grid.directory()))
    return MyProxyServer("localhost", myproxy.port, str(mine.cert), str(mine.key), trust, timeout_s=20)


def half_a_day_on() -> datetime:
    return datetime.now(UTC) + timedelta(hours=13)


def source(myproxy: MyProxy, tmp_path: Path, who: str = "aso", **options: object) -> MyProxyCredentials:
    cache = tmp_path / "cache"
    return MyProxyCredentials(server(myproxy, who), cache, **options)  # type: ignore[arg-type]


def test_a_trusted_retriever_gets_a_proxy(myproxy: MyProxy, tmp_path: Path) -> None:
    myproxy.put(pair(myproxy.grid, "alice"), "alice")
    found = source(myproxy, tmp_path).credential(ALICE)
    assert (found.subject, found.kind, found.fqans) == ("/DC=test/CN=alice", "x509", ())
    assert timedelta(hours=20) < found.expires_at - datetime.now(UTC) <= timedelta(hours=24)
    assert found.cert_file is not None
    path = Path(found.cert_file)
    assert path == tmp_path / "cache" / "alice@cms.pem"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_it_is_kept_and_renewed_in_time(myproxy: MyProxy, tmp_path: Path) -> None:
    myproxy.put(pair(myproxy.grid, "alice"), "alice")
    before = myproxy.asked
    mine = source(myproxy, tmp_path)
    first = mine.credential(ALICE)
    assert mine.credential(ALICE) == mine.renew(ALICE, timedelta(hours=10)) == first
    assert source(myproxy, tmp_path).credential(ALICE) == first  # another process
    assert myproxy.asked == before + 1
    later = source(myproxy, tmp_path, now=half_a_day_on)
    again = later.renew(ALICE, timedelta(hours=30))
    assert myproxy.asked == before + 2
    assert again.cert_file == first.cert_file


def test_group_and_role_choose_the_credential(myproxy: MyProxy, tmp_path: Path) -> None:
    """A stored VOMS proxy keeps its attributes in the chain of what is got."""
    alice = pair(myproxy.grid, "alice")
    myproxy.put(alice, "alice")
    with pytest.raises(CredentialMissing):
        source(myproxy, tmp_path).credential(PRODUCTION)
    proxy = write_proxy(tmp_path / "voms.pem", alice, fqans=FQANS)
    myproxy.put_as_it_is(proxy, "alice", "-k", credential_name(PRODUCTION))
    found = source(myproxy, tmp_path).credential(PRODUCTION)
    assert found.fqans == FQANS
    assert found.subject == "/DC=test/CN=alice"
    assert source(myproxy, tmp_path).credential(ALICE).fqans == ()


def test_a_name_alone_gives_no_role(myproxy: MyProxy, tmp_path: Path) -> None:
    myproxy.put(pair(myproxy.grid, "alice"), "alice", "-k", credential_name(PRODUCTION))
    with pytest.raises(CredentialWrong, match="no VOMS attributes"):
        source(myproxy, tmp_path).credential(PRODUCTION)
    assert not list((tmp_path / "cache").glob("*"))


def test_nobody_elses_credential(myproxy: MyProxy, tmp_path: Path) -> None:
    myproxy.put(pair(myproxy.grid, "eve"), "alice")
    with pytest.raises(CredentialWrong, match="is of /DC=test/CN=eve, not of /DC=test/CN=alice"):
        source(myproxy, tmp_path, subjects={"alice": "/DC=test/CN=alice"}).credential(ALICE)


def test_what_is_renewed_stays_the_same_persons(
    myproxy: MyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    myproxy.put(pair(myproxy.grid, "alice"), "alice")
    mine = source(myproxy, tmp_path)
    first = mine.credential(ALICE)
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").mkdir(mode=0o700)
    myproxy.put(pair(myproxy.grid, "eve"), "alice")
    assert source(myproxy, tmp_path, now=half_a_day_on).renew(ALICE, timedelta(hours=30)) == first
    assert "not of /DC=test/CN=alice" in caplog.text


def test_an_account_of_another_form(myproxy: MyProxy, tmp_path: Path) -> None:
    myproxy.put(pair(myproxy.grid, "alice"), "cms-alice")
    assert (
        source(myproxy, tmp_path, account="{vo}-{username}").credential(ALICE).subject == "/DC=test/CN=alice"
    )


@pytest.mark.parametrize("who", ["aso", "eve"])
def test_an_owner_may_say_who_gets_it(myproxy: MyProxy, tmp_path: Path, who: str) -> None:
    (tmp_path / "conf").write_text(CONFIGURATION.format(trusted="*", unless_said="none"))
    myproxy.put(pair(myproxy.grid, "alice"), "alice", "-x", "-Z", "/DC=test/CN=aso")
    if who == "aso":
        source(myproxy, tmp_path, who).credential(ALICE)
    else:
        with pytest.raises(CredentialWrong):
            source(myproxy, tmp_path, who).credential(ALICE)


def test_with_a_passphrase(myproxy: MyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    myproxy.put(pair(myproxy.grid, "alice"), "alice", passphrase="correct horse")
    good = source(myproxy, tmp_path, "eve", passphrase="correct horse")
    assert good.credential(ALICE).subject == "/DC=test/CN=alice"
    shutil.rmtree(tmp_path / "cache")
    bad = source(myproxy, tmp_path, "eve", passphrase="wrong horse")
    with pytest.raises(CredentialProblem) as caught:
        bad.credential(ALICE)
    assert isinstance(caught.value, CredentialWrong)
    said = caplog.text + str(caught.value) + repr(caught.value) + repr(good.__dict__ | {"_passphrase": ""})
    assert "horse" not in said
    assert "BEGIN" not in said


def test_who_is_no_trusted_retriever_gets_nothing(myproxy: MyProxy, tmp_path: Path) -> None:
    myproxy.put(pair(myproxy.grid, "alice"), "alice")
    with pytest.raises(CredentialWrong):
        source(myproxy, tmp_path, "eve").credential(ALICE)


def test_what_is_not_there(myproxy: MyProxy, tmp_path: Path) -> None:
    with pytest.raises(
        CredentialMissing, match=r'MyProxy localhost:\d+ says: No credentials exist for username "alice"'
    ):
        source(myproxy, tmp_path).credential(ALICE)


def test_what_has_not_much_left(myproxy: MyProxy, tmp_path: Path) -> None:
    short = myproxy.grid.person("short", ends=timedelta(minutes=30))
    proxy = write_proxy(tmp_path / "short.pem", short)
    myproxy.put_as_it_is(proxy, "alice")
    with pytest.raises(CredentialExpired):
        source(myproxy, tmp_path).credential(ALICE)


def test_a_cache_that_others_can_use_is_not_used(myproxy: MyProxy, tmp_path: Path) -> None:
    myproxy.put(pair(myproxy.grid, "alice"), "alice")
    mine = source(myproxy, tmp_path)
    cert_file = mine.credential(ALICE).cert_file
    assert cert_file is not None
    Path(cert_file).chmod(0o644)
    with pytest.raises(CredentialUnsafe, match="chmod 600"):
        mine.credential(ALICE)


def test_a_spoilt_cache_is_replaced(myproxy: MyProxy, tmp_path: Path) -> None:
    myproxy.put(pair(myproxy.grid, "alice"), "alice")
    mine = source(myproxy, tmp_path)
    cert_file = mine.credential(ALICE).cert_file
    assert cert_file is not None
    Path(cert_file).write_text("spoilt")
    assert mine.credential(ALICE).subject == "/DC=test/CN=alice"


@pytest.mark.parametrize("trouble", ["name", "unknown CA"])
def test_the_servers_certificate_is_checked(myproxy: MyProxy, tmp_path: Path, trouble: str) -> None:
    wrong = server(myproxy)
    if trouble == "name":
        wrong = replace(wrong, server_name="myproxy.example.org")
    else:
        folder = tmp_path / "another"
        folder.mkdir()
        wrong = replace(wrong, trust=Trust(str(Grid.make(folder).directory())))
    with pytest.raises(
        SourceSilent, match=r"not valid for 'myproxy|CA that is not among ours|signature failure"
    ):
        MyProxyCredentials(wrong, tmp_path / "cache").credential(ALICE)


# --- servers that do not answer well ---


@contextmanager
def lonely(grid: Grid, says: bytes | None) -> Iterator[int]:
    """Listen on a port; say something in the clear to whoever comes, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve() -> None:
            line, _ = listener.accept()
            with line:
                if says is None:
                    done.wait(20)
                else:
                    line.sendall(says)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        done.set()
        thread.join(20)


@pytest.mark.parametrize(
    ("says", "text"), [(None, "no answer within 0.2 s"), (b"220 smtp\r\n", ""), (b"", "")]
)
def test_a_server_that_gives_no_answer(grid: Grid, tmp_path: Path, says: bytes | None, text: str) -> None:
    mine = pair(grid, "aso")
    with lonely(grid, says) as port:
        silent = MyProxyServer("localhost", port, str(mine.cert), str(mine.key), Trust(str(grid.directory())), timeout_s=0.2)  # fmt: skip
        with pytest.raises(SourceSilent, match=f"did not give an answer: .*{text}"):
            MyProxyCredentials(silent, tmp_path / "cache").credential(ALICE)


def test_while_the_server_is_silent_what_is_kept_is_good(
    myproxy: MyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    myproxy.put(pair(myproxy.grid, "alice"), "alice")
    kept = source(myproxy, tmp_path).credential(ALICE)
    nobody = replace(server(myproxy), port=1)
    assert (
        MyProxyCredentials(nobody, tmp_path / "cache", now=half_a_day_on).renew(ALICE, timedelta(hours=30))
        == kept
    )
    assert "not renewed, and good until" in caplog.text
    later = datetime.now(UTC) + timedelta(hours=24)
    with pytest.raises(SourceSilent):
        MyProxyCredentials(nobody, tmp_path / "cache", now=lambda: later).credential(ALICE)
