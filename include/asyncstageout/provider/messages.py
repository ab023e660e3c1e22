"""Feeds of messages that outlive a watch: a topic keeps nothing for who is away between two of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from asyncstageout.clients.messages import Broker, MessageFeed

if TYPE_CHECKING:
    from airflow.sdk import Connection

logger = logging.getLogger(__name__)

_feeds: dict[Broker, MessageFeed] = {}
"""Of this process (the triggerer), by broker. Only its event loop comes here."""


def feed_of(connection: Connection) -> MessageFeed | None:
    """Return the feed of an ``fts3`` connection, started if need be; None where it names no broker.

    A broker that is misconfigured is logged: polling does all the work.
    """
    extra = connection.extra_dejson
    if not extra.get("messages_url"):
        return None
    try:
        import stomp  # noqa: F401, PLC0415 - an optional library

        broker = Broker.of(
            extra["messages_url"],
            password=extra.get("messages_password") or None,
            ca_file=extra.get("messages_ca_file") or extra.get("ca_file") or None,
            cert_file=extra.get("cert_file") or None,
            key_file=extra.get("key_file") or None,
        )
    except ModuleNotFoundError:
        logger.warning("messages need stomp.py: install asyncstageout[messages]; polling goes on")
        return None
    except ValueError as error:
        logger.warning("messages_url: %s; polling goes on", error)
        return None
    feed = _feeds.get(broker)
    if feed is None or not feed.is_open:
        feed = _feeds[broker] = MessageFeed(broker)
    return feed
