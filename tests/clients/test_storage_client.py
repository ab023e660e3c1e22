"""The storage client against a small WebDAV storage, and against the odd ones."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from posixpath import dirname

import pytest

from asyncstageout.clients.errors import (
    AccessDenied,
    FileChanged,
    NoSpace,
    NoSuchFile,
    ParentMissing,
    StorageBadAnswer,
    StorageError,
    StorageRefused,
    StorageUnavailable,
    StorageUnreachable,
)
from asyncstageout.clients.http import Access, Patience, new_session
from asyncstageout.clients.storage import Entry, StorageClient, StoredFile, adler32_in, http_url
from clients.answering import AnsweringServer, Asked, Reply, answering, in_turn

MODIFIED = "Sun, 22 Nov 2026 08:37:20 GMT"
MODIFIED_AT = datetime(2026, 11, 22, 8, 37, 20, tzinfo=UTC)
TWICE = Patience(tries=2)


class Storage:
    """Files and directories in memory, with the manners of WebDAV."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.directories = {"/", "/store"}

    def __call__(self, asked: Asked) -> Reply:
        methods: dict[str, Callable[[str, Asked], Reply]] = {
            "HEAD": self.get,
            "GET": self.get,
            "PUT": self.put,
            "MKCOL": self.mkcol,
            "DELETE": self.delete,
            "PROPFIND": self.propfind,
        }
        return methods[asked.method](asked.path.rstrip("/") or "/", asked)

    def get(self, path: str, asked: Asked) -> Reply:
        content = self.files.get(path)
        if content is None:
            return Reply(404)
        headers = {"Last-Modified": MODIFIED}
        if asked.headers.get("want-digest") == "adler32":
            headers["Digest"] = f"adler32={zlib.adler32(content):08x}"
        if asked.method == "HEAD":
            headers["Content-Length"] = str(len(content))
        return Reply(200, content, headers)

    def put(self, path: str, asked: Asked) -> Reply:
        if dirname(path) not in self.directories:
            return Reply(409)
        self.files[path] = asked.body
        return Reply(201)

    def mkcol(self, path: str, _asked: Asked) -> Reply:
        if path in self.directories:
            return Reply(405)
        if dirname(path) not in self.directories:
            return Reply(409)
        self.directories.add(path)
        return Reply(201)

    def delete(self, path: str, _asked: Asked) -> Reply:
        return Reply(204) if self.files.pop(path, None) is not None else Reply(404)

    def propfind(self, path: str, asked: Asked) -> Reply:
        if asked.headers["depth"] == "0" and path in self.files:
            text = f'<?xml version="1.0"?><d:multistatus xmlns:d="DAV:">{self.response(path)}</d:multistatus>'
            return Reply(207, text.encode(), {"Content-Type": "application/xml"})
        if path not in self.directories:
            return Reply(404)
        inside = [name for name in (*self.files, *self.directories) if dirname(name) == path and name != path]
        rows = "".join(self.response(name) for name in (path, *sorted(inside)))
        text = f'<?xml version="1.0"?><d:multistatus xmlns:d="DAV:">{rows}</d:multistatus>'
        return Reply(207, text.encode(), {"Content-Type": "application/xml"})

    def response(self, name: str) -> str:
        if name in self.directories:
            kind = "<d:resourcetype><d:collection/></d:resourcetype>"
            name += "/"
        else:
            kind = (
                f"<d:resourcetype/><d:getcontentlength>{len(self.files[name])}</d:getcontentlength>"
                f"<d:getlastmodified>{MODIFIED}</d:getlastmodified>"
            )
        href = name.replace(" ", "%20")
        properties = f"<d:propstat><d:prop>{kind}</d:prop></d:propstat>"
        return f"<d:response><d:href>{href}</d:href>{properties}</d:response>"


@pytest.fixture
def storage() -> Storage:
    return Storage()


@contextmanager
def client_of(
    respond: Callable[[Asked], Reply], access: Access | None = None
) -> Iterator[tuple[StorageClient, AnsweringServer, str]]:
    with (
        answering(respond) as server,
        StorageClient(new_session(access), patience=TWICE, sleep=lambda _s: None) as client,
    ):
        yield client, server, f"dav://{server.address}"


def test_a_file_comes_and_goes(storage: Storage) -> None:
    content = b"events" * 1000
    with client_of(storage) as (client, _, site):
        url = f"{site}/store/output.root"
        assert not client.exists(url)
        client.write(url, content)
        assert client.exists(url)
        assert client.stat(url) == StoredFile(url, 6000, f"{zlib.adler32(content):08x}", MODIFIED_AT)
        pieces = list(client.read(url, chunk_bytes=1024))
        assert (b"".join(pieces), len(pieces)) == (content, 6)
        assert client.delete(url)
        assert not client.delete(url)
        with pytest.raises(NoSuchFile):
            client.stat(url)
        with pytest.raises(NoSuchFile):
            list(client.read(url))


def test_write_makes_the_directories_that_it_needs(storage: Storage) -> None:
    with client_of(storage) as (client, server, site):
        client.write(f"{site}/store/user/alice/0000/f", b"x")
        first = [asked.method for asked in server.asked]
        client.write(f"{site}/store/user/alice/0000/g", b"")
    assert storage.files == {"/store/user/alice/0000/f": b"x", "/store/user/alice/0000/g": b""}
    assert first == ["PUT", *["MKCOL"] * 5, "PUT"]
    assert [asked.method for asked in server.asked[len(first) :]] == ["PUT"]


@pytest.mark.parametrize("once", [False, True])
def test_write_takes_pieces(storage: Storage, once: bool) -> None:
    pieces = [b"one", b"two", b"three"]
    with client_of(storage) as (client, _, site):
        client.write(f"{site}/store/a/f", iter(pieces) if once else pieces)
    assert storage.files == {"/store/a/f": b"onetwothree"}


def test_write_is_repeated_with_the_same_content(storage: Storage) -> None:
    replies = iter([Reply(503), None])
    with client_of(lambda asked: next(replies) or storage(asked)) as (client, _, site):
        client.write(f"{site}/store/f", [b"one", b"two"])
    assert storage.files == {"/store/f": b"onetwo"}


def test_what_can_be_read_once_is_written_once(storage: Storage) -> None:
    storage.directories.add("/store/a")
    replies: dict[str, Reply] = {"PUT": Reply(503)}
    with client_of(lambda asked: replies.get(asked.method) or storage(asked)) as (client, server, site):
        with pytest.raises(StorageUnavailable):
            client.write(f"{site}/store/a/f", iter([b"one"]))
        assert [asked.method for asked in server.asked] == ["MKCOL", "PUT"]


def test_write_follows_the_storage_to_the_node_and_keeps_the_token(storage: Storage) -> None:
    access = Access(bearer=lambda: "token")
    with answering(storage) as node:
        away = Reply(307, headers={"Location": f"{node.url}/store/f"})
        with client_of(in_turn(away), access) as (client, server, site):
            client.write(f"{site}/door/f", [b"one", b"two"])
    assert storage.files == {"/store/f": b"onetwo"}
    assert server.asked[0].headers["authorization"] == "Bearer token"
    assert "authorization" not in node.asked[0].headers


def test_redirects_end() -> None:
    round_and_round = Reply(307, headers={"Location": "/store/f"})
    with client_of(in_turn(round_and_round)) as (client, server, site):
        with pytest.raises(StorageRefused, match="more than 5 redirects"):
            client.write(f"{site}/store/f", b"x")
        assert len(server.asked) == 5


def test_what_can_be_read_once_is_not_sent_to_a_second_place() -> None:
    away = Reply(307, headers={"Location": "/store/g"})
    with client_of(lambda asked: away if asked.method == "PUT" else Reply(405)) as (client, server, site):
        with pytest.raises(StorageRefused, match="read only once"):
            client.write(f"{site}/store/f", iter([b"x"]))
        assert [asked.method for asked in server.asked] == ["MKCOL", "PUT"]


def test_a_redirected_delete_is_not_a_success() -> None:
    elsewhere = Reply(302, headers={"Location": "/elsewhere"})
    with client_of(in_turn(elsewhere, Reply(200))) as (client, server, site), pytest.raises(StorageRefused):
        client.delete(f"{site}/store/f")
    assert len(server.asked) == 1


@pytest.mark.parametrize("path", ["/store/", "/", ""])
def test_a_directory_is_not_deleted(storage: Storage, path: str) -> None:
    with client_of(storage) as (client, server, site):
        with pytest.raises(ValueError, match="is a directory"):
            client.delete(site + path)
        assert not server.asked


def test_a_deletion_may_hang_on_its_time() -> None:
    with client_of(in_turn(Reply(204), Reply(412), Reply(404))) as (client, server, site):
        assert client.delete(f"{site}/store/f", unmodified_since=MODIFIED_AT) is True
        assert server.asked[0].headers["if-unmodified-since"] == MODIFIED
        with pytest.raises(FileChanged):
            client.delete(f"{site}/store/f", unmodified_since=MODIFIED_AT)
        with pytest.raises(NoSuchFile):
            client.look(f"{site}/store/f")
    assert "if-unmodified-since" not in server.asked[2].headers


def test_one_file_is_looked_at_with_the_storages_own_time(storage: Storage) -> None:
    storage.files = {"/store/f": b"123"}
    with client_of(storage) as (client, server, site):
        look = client.look(f"{site}/store/f")
        assert look.entries == [Entry(f"{site}/store/f", False, 3, MODIFIED_AT)]
        assert look.clock_at is not None
        assert server.asked[0].headers["depth"] == "0"


def test_a_token_of_ones_own_over_the_same_connections(storage: Storage) -> None:
    storage.files = {"/store/f": b"123"}
    tokens = iter(["one", "two"])
    with client_of(storage) as (client, server, site):
        other = client.with_token(lambda: next(tokens))
        for _ in range(2):
            other.look(f"{site}/store/f")
        client.look(f"{site}/store/f")
    shown = [asked.headers.get("authorization") for asked in server.asked]
    assert shown == ["Bearer one", "Bearer two", None]


def test_list_directory(storage: Storage) -> None:
    storage.files = {"/store/a file": b"123", "/store/b": b"", "/store/sub/c": b""}
    storage.directories.add("/store/sub")
    with client_of(storage) as (client, _, site):
        assert client.list_directory(f"{site}/store") == [
            Entry(f"{site}/store/a%20file", False, 3, MODIFIED_AT),
            Entry(f"{site}/store/b", False, 0, MODIFIED_AT),
            Entry(f"{site}/store/sub/", True, 0, None),
        ]
        with pytest.raises(NoSuchFile):
            client.list_directory(f"{site}/nowhere")


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b'<!DOCTYPE x [<!ENTITY a "b">]><multistatus/>'],
    ids=["empty", "html", "entities"],
)
def test_a_listing_that_cannot_be_read(body: bytes) -> None:
    with client_of(in_turn(Reply(207, body))) as (client, _, site), pytest.raises(StorageBadAnswer):
        client.list_directory(f"{site}/store")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, AccessDenied),
        (403, AccessDenied),
        (405, StorageRefused),
        (409, ParentMissing),
        (413, NoSpace),
        (423, StorageUnavailable),
        (500, StorageUnavailable),
        (503, StorageUnavailable),
        (507, NoSpace),
    ],
)
def test_a_refusal_says_what_and_where(status: int, error: type[StorageError]) -> None:
    with client_of(in_turn(Reply(status, b"<h1>no</h1>"))) as (client, server, site):
        with pytest.raises(error) as caught:
            client.delete(f"{site}/store/f?authz=secret")
        assert type(caught.value) is error
        assert str(caught.value).startswith(f"{server.address}: DELETE /store/f answered {status}: no")


def test_a_file_that_breaks_off() -> None:
    with client_of(in_turn(Reply(200, b"x" * 100, instead="cut"))) as (client, _, site):
        pieces = client.read(f"{site}/f", chunk_bytes=10)
        with pytest.raises(StorageUnreachable):
            list(pieces)


def test_a_file_without_a_length() -> None:
    with (
        client_of(in_turn(Reply(200, headers={"Content-Length": ""}))) as (client, _, site),
        pytest.raises(StorageBadAnswer, match="no length"),
    ):
        client.stat(f"{site}/f")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("adler32=03da0195", "03da0195"),
        ("adler32=3DA0195", "03da0195"),
        ("ADLER32=03DA0195", "03da0195"),
        ("md5=HUXZLQLMuI/KZ5KDcJPcOA==, adler32=03da0195", "03da0195"),
        ("adler32=" + base64.b64encode(bytes.fromhex("03da0195")).decode(), "03da0195"),
        ("adler32=" + base64.b64encode(b"03DA0195").decode(), "03da0195"),
        ("adler32=", None),
        ("adler32=?", None),
        ("adler32=zzzz", None),
        ("md5=HUXZLQLMuI/KZ5KDcJPcOA==", None),
        ("", None),
    ],
)
def test_checksums_as_storages_write_them(header: str, expected: str | None) -> None:
    assert adler32_in(header) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("davs://se.example.org:8443/f?x=1", "https://se.example.org:8443/f?x=1"),
        ("https://se.example.org/f", "https://se.example.org/f"),
        ("dav://se.example.org/f", "http://se.example.org/f"),
    ],
)
def test_schemes(url: str, expected: str) -> None:
    assert http_url(url) == expected


@pytest.mark.parametrize("url", ["root://se.example.org//f", "gsiftp://se.example.org/f", "/f", "davs:///f"])
def test_schemes_that_are_not_webdav(url: str) -> None:
    with pytest.raises(ValueError, match="WebDAV"):
        http_url(url)
