"""Channels of alerts, made of Airflow's connections: mail by its own notifier, chats, webhooks, Apprise."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

from airflow.configuration import conf
from airflow.sdk import Variable
from airflow.sdk.exceptions import AirflowException

from asyncstageout.clients.alert_receivers import AlertWebhook, ChatWebhook
from asyncstageout.clients.apprise_services import AppriseServices, AppriseUnusable, read_services
from asyncstageout.clients.receivers import ContentRefused, Failing, NotLetIn, ReceiverError
from asyncstageout.clients.webhook import BadSecret, BadURL
from asyncstageout.core.alert_channels import (
    VARIABLE,
    AnyChannel,
    Apprise,
    Mail,
    Slack,
    Webhook,
    read_channels,
)
from asyncstageout.core.alert_texts import Links, html, title
from asyncstageout.core.alerts import Notice
from asyncstageout.provider.connections import ConnectionUnusable, address_of, connection, session_of
from asyncstageout.provider.outbox import signed_access

if TYPE_CHECKING:
    from asyncstageout.steps.alerts import Teller


def channels() -> tuple[list[AnyChannel], list[str]]:
    """Return the channels of the Airflow Variable, and what is wrong with those that do not count."""
    return read_channels(Variable.get(VARIABLE, default=None))


def links() -> Links:
    """Return where Airflow is, as its configuration says (``[api] base_url``)."""
    return Links(conf.get("api", "base_url", fallback="").rstrip("/"))


def opened(channel: AnyChannel, installation: str) -> Teller:
    """Return a channel that can be told something.

    :raises NotLetIn: there is no such connection, or it cannot be used.
    """
    try:
        match channel:
            case Mail():
                return _Mail(channel, links())
            case Slack():
                return _chat(channel)
            case Webhook():
                url, session, keys = signed_access(channel.conn_id)
                return AlertWebhook(
                    url, session, keys, links(), installation=installation, channel=channel.name
                )
            case Apprise():
                return _apprise(channel)
    except (ConnectionUnusable, BadSecret, BadURL, AppriseUnusable) as error:
        said = str(error).removeprefix(f"connection {channel.conn_id}: ")
        raise NotLetIn(f"connection {channel.conn_id}", "reading it", detail=said) from error


def _chat(channel: Slack) -> ChatWebhook:
    """The password is the path of the URL, which is the secret; a host as Slack's provider has it will do."""
    conn = connection(channel.conn_id)
    if not conn.password:
        raise ConnectionUnusable(
            channel.conn_id, "it has no password; put the path of the webhook's URL there"
        )
    host = str(conn.host)
    base = host.rstrip("/") if "://" in host else address_of(conn)
    return ChatWebhook(f"{base}/{conn.password.lstrip('/')}", session_of(conn), links())


def _apprise(channel: Apprise) -> AppriseServices:
    """The services, with their secrets, are in the extra as Airflow's Apprise provider writes them."""
    config = connection(channel.conn_id, needs_host=False).extra_dejson.get("config")
    return AppriseServices(f"connection {channel.conn_id}", read_services(config), links(), tags=channel.tags)


class _Mail:
    """Airflow's notifier for mail, with errors like those of other channels."""

    def __init__(self, channel: Mail, links: Links) -> None:
        self._channel, self._links = channel, links

    def tell(self, notices: Sequence[Notice]) -> None:
        # Not templates: nothing of what people wrote is executed.
        from airflow.providers.smtp.notifications.smtp import SmtpNotifier  # noqa: PLC0415 - heavy

        # The same for the same messages, so that a mail server or a reader can tell them apart.
        number = sha256(",".join(str(one.message_id) for one in notices).encode()).hexdigest()[:32]
        notifier = SmtpNotifier(
            to=list(self._channel.to),
            subject=title(notices),
            html_content=html(notices, self._links),
            smtp_conn_id=self._channel.conn_id,
            custom_headers={"Message-ID": f"<{number}@stageout>", "Auto-Submitted": "auto-generated"},
        )
        try:
            notifier.notify({})
        except (AirflowException, ValueError, RuntimeError, smtplib.SMTPException, OSError) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> ReceiverError:
        where = (f"connection {self._channel.conn_id}", "sending a mail")
        detail = f"{type(error).__name__}: {error}"[:300]
        match error:
            case smtplib.SMTPRecipientsRefused() | smtplib.SMTPSenderRefused():
                return ContentRefused(*where, None, detail)
            case (
                smtplib.SMTPAuthenticationError()
                | smtplib.SMTPNotSupportedError()
                | ssl.SSLCertVerificationError()
            ):
                return NotLetIn(*where, None, detail)
            case smtplib.SMTPConnectError() | ConnectionRefusedError():
                return Failing(*where, None, detail, maybe_delivered=False)
            case smtplib.SMTPException() | OSError():
                return Failing(*where, None, detail)
        return NotLetIn(*where, None, detail)
