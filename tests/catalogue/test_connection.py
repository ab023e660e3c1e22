"""Whoever opened it, a connection behaves as the functions of the catalogue expect."""

from __future__ import annotations

import os
import socket

import psycopg

from asyncstageout.catalogue.connection import connect, prepared


def test_a_connection_notices_a_server_that_vanished(catalogue_url: str) -> None:
    for conn in (connect(catalogue_url), prepared(psycopg.connect(catalogue_url))):
        with conn, socket.socket(fileno=os.dup(conn.fileno())) as line:
            assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
            assert conn.autocommit
            assert conn.execute("SHOW TimeZone").fetchone() == ("UTC",)
