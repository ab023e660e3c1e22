"""Airflow manners: hook, operators, sensor, triggers, link and connection form."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Tell Airflow what this package brings (entry point ``apache_airflow_provider``); imports are light."""
    return {
        "package-name": "asyncstageout",
        "name": "AsyncStageOut",
        "description": "FTS3 transfers and the stage-out of users' files.",
        "versions": [version("asyncstageout")],
        "connection-types": [
            {
                "connection-type": "fts3",
                "hook-name": "FTS3",
                "hook-class-name": "asyncstageout.provider.hooks.FTSHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema"],
                    "relabeling": {"password": "Bearer token (instead of a certificate)"},
                    "placeholders": {"host": "fts3-cms.cern.ch", "port": "8446"},
                },
                "conn-fields": _FTS3_FIELDS,
            },
            {
                "connection-type": "stageout_credentials",
                "hook-name": "Stage-out credentials",
                "hook-class-name": "asyncstageout.provider.credentials.CredentialsHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema"],
                    "relabeling": {
                        "host": "MyProxy server",
                        "login": "Client id (oidc)",
                        "password": "Passphrase (myproxy) or client secret (oidc)",
                    },
                    "placeholders": {"host": "myproxy.cern.ch", "port": "7512"},
                },
                "conn-fields": _CREDENTIALS_FIELDS,
            },
            {
                "connection-type": "dbs",
                "hook-name": "DBS",
                "hook-class-name": "asyncstageout.provider.dbs.DBSHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "password", "schema"],
                    "relabeling": {},
                    "placeholders": {"host": "cmsweb.cern.ch", "port": "8443"},
                },
                "conn-fields": _DBS_FIELDS,
            },
        ],
        "extra-links": ["asyncstageout.provider.links.FTSMonitorLink"],
    }


def _field(label: str, description: str) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["string", "null"]}}


_FTS3_FIELDS = {
    "ca_file": _field(
        "Certificate authorities", "File or hashed directory, such as /etc/grid-security/certificates"
    ),
    "crl": _field("Revocation", "leaf or chain; empty: revocation lists are not looked at"),
    "cert_file": _field("Client certificate", "PEM file of the service certificate or proxy"),
    "key_file": _field("Client key", "PEM file; empty if the certificate file holds the key"),
    "vo": _field("VO", "As FTS sees it; asked from FTS when empty"),
    "monitor_url": _field("Monitor", "Base of job pages; empty means port 8449 of the host"),
    "messages_url": _field(
        "Messages", "stomp+ssl://user@host:port of the broker with FTS's messages; empty means polling alone"
    ),
    "messages_password": _field("Password for messages", "Empty where the client certificate counts"),
}

_CREDENTIALS_FIELDS = {
    "source": _field("Source", "directory, myproxy or oidc"),
    "directory": _field("Directory", "Where credentials are (directory), or are kept (myproxy)"),
    "subjects_file": _field("Subjects", "JSON file of user name and DN; empty: any DN counts"),
    "cert_file": _field("Service certificate", "PEM file, for MyProxy"),
    "key_file": _field("Service key", "PEM file; empty if the certificate file holds the key"),
    "ca_file": _field("Certificate authorities", "File or hashed directory; empty: the public ones"),
    "crl": _field("Revocation", "leaf or chain; empty: revocation lists are not looked at"),
    "server_name": _field("Server's name", "In MyProxy's certificate, where it is not the host"),
    "account": _field("Account", "Under which users put theirs into MyProxy; {username} when empty"),
    "lifetime_h": _field("Lifetime", "Hours to ask MyProxy for; 168 when empty"),
    "issuer": _field("Issuer", "URL of the OpenID issuer, for oidc"),
    "test_identity": _field(
        "Identity to test", "Whose credential the Test button looks at, such as alice@cms"
    ),
}

_DBS_FIELDS = {
    "writer": _field("Writer", "Path on the host, or a URL; /dbs/prod/phys03/DBSWriter when empty"),
    "reader": _field("Reader", "The writer's with DBSReader at its end when empty"),
    "migrate": _field("Migration server", "The writer's with DBSMigrate at its end when empty"),
    "global_reader": _field("Global reader", "Where parents are looked for last; empty: nowhere else"),
    "ca_file": _field(
        "Certificate authorities", "File or hashed directory, such as /etc/grid-security/certificates"
    ),
    "crl": _field("Revocation", "leaf or chain; empty: revocation lists are not looked at"),
    "cert_file": _field("Client certificate", "PEM file of the service certificate or proxy"),
    "key_file": _field("Client key", "PEM file; empty if the certificate file holds the key"),
    "block_files": _field("Files of a block", "At most; 100 when empty"),
    "block_lumis": _field("Luminosity sections of a block", "At most; 100000 when empty"),
    "block_payload_bytes": _field("Bytes of a block", "As it is sent, at most; 50000000 when empty"),
    "close_after_s": _field("Close after", "Seconds since the dataset's last block; 18800 when empty"),
    "first_after_s": _field("Close the first after", "Seconds, for a new dataset; 600 when empty"),
    "oldest_s": _field("Oldest file", "Seconds that a file waits at most; 259200 when empty"),
    "max_tries": _field("Tries", "Refusals until the files of a block fail; 3 when empty"),
    "metadata_wait_s": _field("Wait for metadata", "Seconds; 259200 when empty"),
    "acquisition_era": _field("Acquisition era", "CRAB when empty"),
    "processing_version": _field("Processing version", "1 when empty"),
    "physics_group": _field("Physics group", "CRAB3 when empty"),
    "primary_dataset_type": _field("Type of primary datasets", "mc when empty"),
}
