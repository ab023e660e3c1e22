"""Who is told what: receivers of Airflow's connections, and the bodies of the tasks that deliver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import requests
from psycopg import Connection

from asyncstageout.catalogue.fts_servers import installation_id
from asyncstageout.catalogue.outbox import due_subscriptions
from asyncstageout.catalogue.subscriptions import SubscriptionView
from asyncstageout.clients.crab import CRABReports
from asyncstageout.clients.receivers import NotLetIn, Receiver
from asyncstageout.clients.rucio_catalogue import RucioAccess, RucioCatalogue, opened
from asyncstageout.clients.webhook import BadSecret, BadURL, Webhook, read_secret
from asyncstageout.core.subscriptions import (
    AnySubscription,
    CRABSubscription,
    RucioSubscription,
    WebhookSubscription,
)
from asyncstageout.provider.connections import (
    ConnectionUnusable,
    address_of,
    connection,
    crab_at,
    session_of,
)
from asyncstageout.provider.running import run_step
from asyncstageout.steps import deliver as step
from asyncstageout.steps.recording import Summary

Context = Mapping[str, Any]

CREDENTIALS: Mapping[str, Mapping[str, str]] = {
    "userpass": {"username": "login", "password": "password"},
    "x509": {"client_cert": "cert_file", "client_key": "key_file"},
    "x509_proxy": {"client_proxy": "cert_file"},
}
"""How we log in to Rucio: what Rucio calls the parts of a credential, and where the connection has them."""


def list_due(context: Context) -> list[str]:
    """Return the names of the subscribers to whom something can be told now; Airflow maps over them."""
    names: list[str] = []

    def body(conn: Connection, _step_run: int) -> Summary:
        names.extend(due_subscriptions(conn))
        waits = f"Something waits for {', '.join(names)}" if names else "Nothing waits for anybody"
        return Summary(waits, {"subscriptions": len(names)})

    run_step(context, body)
    return names


def deliver(context: Context, subscription: str) -> dict[str, Any]:
    """Tell one subscriber what waits for it.

    :raises DeliveryNeedsAPerson: its connection is wrong, it is gone, or messages are dead.
    """

    def body(conn: Connection, step_run: int) -> Summary:
        return step.deliver(conn, subscription, partial(receiver_of, conn), step_run=step_run)

    return run_step(context, body, label="subscriber").as_xcom()


def receiver_of(conn: Connection, view: SubscriptionView) -> Receiver:
    """Return the receiver of a subscription, made of its Airflow connection.

    :raises NotLetIn: there is no such connection, or it cannot be used.
    """
    wanted = view.wanted
    make: Callable[[], Receiver]
    match wanted:
        case WebhookSubscription():
            make = partial(_webhook, wanted, str(installation_id(conn)))
        case CRABSubscription():
            make = partial(_crab, wanted)
        case RucioSubscription():
            make = partial(_rucio, wanted)
    try:
        return make()
    except (ConnectionUnusable, BadSecret, BadURL) as error:
        raise NotLetIn(f"connection {wanted.conn_id}", "reading it", detail=_said(wanted, error)) from error


def _said(wanted: AnySubscription, error: Exception) -> str:
    return str(error).removeprefix(f"connection {wanted.conn_id}: ")


def _webhook(wanted: WebhookSubscription, installation: str) -> Webhook:
    url, session, keys = signed_access(wanted.conn_id)
    return Webhook(
        url,
        session,
        keys,
        batch=wanted.settings.batch,
        installation=installation,
        subscription=wanted.name,
    )


def signed_access(conn_id: str) -> tuple[str, requests.Session, list[bytes]]:
    """Return URL, session and keys of a webhook.

    Password and ``old_secret`` of the connection are secrets; ``path`` is that of the URL.

    :raises ConnectionUnusable: there is no such connection, or it cannot be used.
    :raises BadSecret: its secret is none.
    """
    conn = connection(conn_id)
    path = str(conn.extra_dejson.get("path") or "/").removeprefix("/")
    secrets = [conn.password, conn.extra_dejson.get("old_secret")]
    keys = [read_secret(secret) for secret in secrets if secret]
    if not keys:
        raise BadSecret("it has no password; put the secret there, such as `aso subscriptions secret` makes")
    return f"{address_of(conn)}/{path}", session_of(conn), keys


def _crab(wanted: CRABSubscription) -> CRABReports:
    base, session = crab_at(wanted.conn_id, wanted.settings.instance)
    return CRABReports(base, session, wanted.settings.worker, batch=wanted.settings.batch)


def _rucio(wanted: RucioSubscription) -> RucioCatalogue:
    conn = connection(wanted.conn_id)
    extra = conn.extra_dejson
    auth_type = str(extra.get("auth_type") or ("userpass" if conn.login else "x509_proxy"))
    fields = CREDENTIALS.get(auth_type)
    if fields is None:
        raise ConnectionUnusable(wanted.conn_id, f"auth_type is {', '.join(CREDENTIALS)}, not {auth_type!r}")
    said = {"login": conn.login, "password": conn.password, **extra}
    missing = [ours for ours in fields.values() if not said.get(ours)]
    if missing or not extra.get("account"):
        raise ConnectionUnusable(wanted.conn_id, f"{(missing or ['account'])[0]} is missing")
    access = RucioAccess(
        url=address_of(conn),
        auth_url=str(extra.get("auth_url") or address_of(conn)),
        account=str(extra["account"]),
        auth_type=auth_type,
        creds={theirs: str(said[ours]) for theirs, ours in fields.items()},
        ca=extra.get("ca_file") or None,
    )
    return opened(wanted.settings, access)
