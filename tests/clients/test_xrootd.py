"""Deletions at a real XRootD server: over root://, with XRootD's own client, and over its WebDAV.

They run where ``xrootd`` is installed (Debian: xrootd-server), those over root:// with ``pip install xrootd`` beside.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from asyncstageout.clients import xrootd_storage
from asyncstageout.clients.deletion import Deleter, deletable_schemes
from asyncstageout.clients.errors import (
    AccessDenied,
    FileChanged,
    NoSuchFile,
    StorageError,
    StorageUnreachable,
)
from asyncstageout.clients.http import new_session
from asyncstageout.clients.storage import StorageClient
from asyncstageout.sandbox.layout import free_port
from asyncstageout.sandbox.proxies import write_proxy
from clients.grid import Grid

pytestmark = pytest.mark.skipif(
    shutil.which("xrootd") is None, reason="no xrootd here (Debian: apt install xrootd-server)"
)
needs_client = pytest.mark.skipif(
    not xrootd_storage.is_installed(), reason="the optional extra xrootd is not installed"
)
# Read when XRootD is loaded, which happens with the first client: else it looks at its clocks every 15 s.
os.environ.setdefault("XRD_TIMEOUTRESOLUTION", "1")
PATIENCE_S = 20
AREA = "/store/temp/user/alice.0a1b"
THEN = datetime(2026, 11, 22, 8, 37, 20, tzinfo=UTC)

CONFIG = """
xrd.port {port}
xrd.protocol XrdHttp:{http_port} libXrdHttp.so
all.export /
oss.localroot {folder}/data
all.adminpath {folder}/admin
all.pidpath {folder}/admin
xrd.network nodnr
"""
WITH_CERTIFICATES = """
xrd.port {port}
xrootd.seclib libXrdSec.so
sec.protocol gsi -certdir:{folder}/certificates -cert:{folder}/localhost.pem -key:{folder}/localhost.key -gmapopt:10 -crl:0
sec.protbind * only gsi
acc.authdb {folder}/authdb
ofs.authorize
all.export /
oss.localroot {folder}/data
all.adminpath {folder}/admin
all.pidpath {folder}/admin
xrd.network nodnr
"""
AUTHDB = "u /DC=test/CN=alice {area} a\nu * / rl\n"


@dataclass(frozen=True)
class Server:
    folder: Path
    port: int
    http_port: int

    def root(self, path: str) -> str:
        return f"root://localhost:{self.port}/{path}"

    def web(self, path: str) -> str:
        return f"dav://127.0.0.1:{self.http_port}{path}"

    def put(self, name: str, content: bytes = b"123") -> Path:
        path = self.folder / f"data{AREA}/{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (THEN.timestamp(),) * 2)
        _give_away(self.folder / "data")
        return path


def _owner() -> str:
    """Return the account that the server runs as: it refuses to be root."""
    return "nobody"


def _give_away(folder: Path) -> None:
    if os.getuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            shutil.chown(path, _owner())


def _serve(folder: Path, config: str) -> Iterator[Server]:
    server = Server(folder, free_port(), free_port())
    for name in ("data", "admin"):
        (folder / name).mkdir()
    (folder / "xrootd.cfg").write_text(
        config.format(port=server.port, http_port=server.http_port, folder=folder)
    )
    _give_away(folder)
    command = ["xrootd", "-c", str(folder / "xrootd.cfg"), "-l", str(folder / "admin/log"), "-n", "test"]
    if os.getuid() == 0:
        command[1:1] = ["-R", _owner()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ends_at = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < ends_at:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", server.port)) == 0:
                    break
        else:
            raise AssertionError("xrootd does not start: " + _log(folder))
        yield server
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _log(folder: Path) -> str:
    return "\n".join(path.read_text()[-2000:] for path in folder.rglob("log*") if path.is_file())


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not below pytest's own folder, which is closed to the server's account.
    made = Path(tempfile.mkdtemp(prefix="aso-xrootd-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    (folder / "open").mkdir()
    yield from _serve(folder / "open", CONFIG)


@pytest.fixture(params=["root", pytest.param("dav")])
def deleter(request: pytest.FixtureRequest) -> Iterator[Deleter]:
    if request.param == "dav":
        with StorageClient(new_session()) as client:
            yield client
    elif xrootd_storage.is_installed():
        yield xrootd_storage.XRootDStorage(timeout_s=10)
    else:
        pytest.skip("the optional extra xrootd is not installed")


def url_of(server: Server, deleter: Deleter, name: str) -> str:
    make = server.web if isinstance(deleter, StorageClient) else server.root
    return make(f"{AREA}/{name}")


def test_a_file_is_looked_at_and_deleted(server: Server, deleter: Deleter) -> None:
    path = server.put("mc/out_1.root")
    url = url_of(server, deleter, "mc/out_1.root")
    look = deleter.look(url)
    (entry,) = look.entries
    assert (entry.url, entry.is_directory, entry.size_bytes, entry.modified_at) == (url, False, 3, THEN)
    assert look.clock_at is None, "it does not tell its time, over either protocol"
    assert deleter.delete(url, unmodified_since=THEN + timedelta(seconds=1)) is True
    assert not path.exists()
    assert deleter.delete(url) is False, "gone is as good"
    with pytest.raises(NoSuchFile):
        deleter.look(url)


def test_a_directory_is_listed(server: Server, deleter: Deleter) -> None:
    server.put("list/a.root")
    server.put("list/sub/b.root")
    url = url_of(server, deleter, "list")
    found = {entry.url.rstrip("/"): entry.is_directory for entry in deleter.look(url, inside=True).entries}
    assert found == {f"{url}/a.root": False, f"{url}/sub": True}
    (entry,) = deleter.look(url).entries
    assert entry.is_directory
    with pytest.raises(NoSuchFile):
        deleter.look(f"{url}/nowhere", inside=True)


@needs_client
def test_over_root_a_directory_and_a_younger_file_stay(server: Server) -> None:
    """XRootD would delete an empty directory, over either protocol; and it does not know of conditions."""
    deleter = xrootd_storage.XRootDStorage(timeout_s=10)
    path = server.put("empty/x.root")
    with pytest.raises(FileChanged):
        deleter.delete(server.root(f"{AREA}/empty/x.root"), unmodified_since=THEN - timedelta(seconds=1))
    assert path.exists()
    path.unlink()
    with pytest.raises(ValueError, match="is a directory"):
        deleter.delete(server.root(f"{AREA}/empty"))
    assert path.parent.is_dir()


@needs_client
def test_over_root_nobody_answers() -> None:
    deleter = xrootd_storage.XRootDStorage(timeout_s=1)
    with pytest.raises(StorageUnreachable) as caught:
        deleter.look(f"root://localhost:{free_port()}//store/x")
    assert str(caught.value).startswith("localhost:")


@needs_client
def test_over_root_each_user_comes_with_his_own_proxy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder / "grid"
    home.mkdir()
    grid = Grid.make(home)
    monkeypatch.setenv("X509_CERT_DIR", str(grid.directory()))
    grid.person("localhost", hosts=("localhost",))
    proxies = {name: str(write_proxy(home / f"{name}.proxy", grid.person(name))) for name in ("alice", "bob")}
    (home / "authdb").write_text(AUTHDB.format(area=AREA))
    for server in _serve(home, WITH_CERTIFICATES):
        for proxy in proxies.values():
            if os.getuid() == 0:
                shutil.chown(proxy, "root")
        path = server.put("mc/out_1.root")
        url = server.root(f"{AREA}/mc/out_1.root")
        alice, bob = (xrootd_storage.XRootDStorage(proxies[name], timeout_s=15) for name in ("alice", "bob"))
        assert bob.look(url).entries[0].size_bytes == 3, "all may look"
        with pytest.raises(AccessDenied, match="permission denied"):
            bob.delete(url)
        assert path.exists()
        assert alice.delete(url) is True
        assert not path.exists()
        with pytest.raises(StorageError):
            xrootd_storage.XRootDStorage("/nowhere.pem", timeout_s=5).look(url)


def test_what_can_be_deleted_here_is_known() -> None:
    assert {"davs", "https"} <= deletable_schemes()
    assert ("root" in deletable_schemes()) is xrootd_storage.is_installed()
