"""How commands reach the REST API: ``aso login``, and the service that a person means."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import requests
import typer

from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.options import who
from asyncstageout.cli.surroundings import TIMEOUT_S, Surroundings
from asyncstageout.client import NotAuthenticated, NotFound, Stageout, StageoutError
from asyncstageout.clients.http import Access, InsecureToken, new_session
from asyncstageout.clients.tls import UnreadableCAs
from asyncstageout.sandbox.layout import Layout, write_private

TOKEN = "ASO_API_TOKEN"  # noqa: S105 -- the name of a variable
CERT = "ASO_API_CERT"
CA = "ASO_API_CA"

APIUrl = Annotated[
    str | None,
    typer.Option(envvar="ASO_API_URL", show_default="the embedded platform's", help="Airflow's URL."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        envvar="ASO_API_TOKEN_FILE", show_default="where aso login puts it", help="File with a token."
    ),
]


@app.command()
def login(
    *,
    user: Annotated[str | None, typer.Option(help="Airflow's account.", show_default="yours")] = None,
    api_url: APIUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Get a token from Airflow for the commands that need one, and keep it in a file of yours alone.

    The embedded platform needs none. The token ends after a day, as Airflow is set up.
    """
    if api_url is None:
        raise Advice("Nobody has to log in at the embedded platform.", "Name another one with --api-url.")
    password = typer.prompt("Password", hide_input=True, err=True)
    path = token_file or default_token_file()
    token = _token_of(api_url, user or who(), password)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(path, token)
    console.print(f"Logged in; the token is in {path}", markup=False, soft_wrap=True)


@contextmanager
def stageout_at(api_url: str | None, token_file: Path | None) -> Iterator[Stageout]:
    """Yield a client for the service that the options and the environment name, else the embedded platform.

    Raises:
        Advice: nobody says who asks, or the service refuses or does not answer.
    """
    try:
        with _client(api_url, token_file) as client:
            yield client
    except NotAuthenticated as error:
        raise Advice(str(error), "`aso login` gets a fresh token.") from error
    except NotFound as error:
        raise Advice(error.detail or str(error), "Check the name; what is others' is not shown.") from error
    except StageoutError as error:
        raise Advice(str(error), "`aso doctor` looks further at the embedded platform.") from error
    except (UnreadableCAs, InsecureToken) as error:
        raise Advice(str(error), f"Use https, and check {CA}.") from error


def default_token_file() -> Path:
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "asyncstageout" / "token"


def _client(api_url: str | None, token_file: Path | None) -> Stageout:
    ca, cert = os.environ.get(CA), os.environ.get(CERT)
    if api_url is None:
        return _embedded()
    if cert:
        return Stageout(api_url, cert=cert, ca=ca)
    return Stageout(api_url, token=_known_token(token_file), ca=ca)


def _embedded() -> Stageout:
    here = Surroundings(Layout.load())
    try:
        return Stageout(here.airflow_url, token=here.log_in())
    except Advice as error:
        raise Advice(
            "There is no service to ask.", "Start the platform with `aso up`, or name one with ASO_API_URL."
        ) from error
    except requests.RequestException as error:
        raise Advice(
            f"Airflow at {here.airflow_url} does not let us in: {type(error).__name__}",
            "`aso status` shows whether the platform runs, `aso up` starts it.",
        ) from error


def _known_token(token_file: Path | None) -> str:
    if token := os.environ.get(TOKEN):
        return token
    path = token_file or default_token_file()
    try:
        return path.read_text().strip()
    except OSError as error:
        raise Advice(
            f"No token: {path}: {error.strerror}.", f"Use `aso login`, or set {TOKEN} or {CERT}."
        ) from error


def _token_of(api_url: str, user: str, password: str) -> str:
    url = f"{api_url.rstrip('/')}/auth/token"
    try:
        with new_session(Access(ca=os.environ.get(CA)), pool_size=1) as session:
            answer = session.post(url, json={"username": user, "password": password}, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return str(answer.json()["access_token"])
    except (requests.RequestException, KeyError, TypeError) as error:
        raise Advice(
            f"{url} gives no token to {user}: {_why(error)}.", "Check the URL, the account and the password."
        ) from None


def _why(error: Exception) -> str:
    response = getattr(error, "response", None)
    return f"HTTP {response.status_code}" if response is not None else type(error).__name__
