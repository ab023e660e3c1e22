"""The extra of a connection that has users' tokens come from an OpenID issuer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asyncstageout.clients.credentials.oidc import ANY_AUDIENCE, OIDCCredentials
from asyncstageout.clients.credentials.oidc_tokens import AudienceParameter


class OIDCSettings(BaseModel):
    """What a connection says; names that are not here belong to others and are passed over."""

    model_config = ConfigDict(frozen=True)

    issuer: Annotated[str, Field(pattern=r"https?://[^/]+")]
    ca_file: str | None = None
    fts_scope: str = "fts"
    fts_audience: str = ANY_AUDIENCE
    managed_tokens: bool = True
    """FTS refreshes the tokens of files; without, they are to last from submission to the end of the copy."""
    overwrite: bool = False
    """Tokens may also replace what is at the destination."""
    audiences: dict[str, str] = {}
    """Host of a storage -> its audience, where that is not ``https://host[:port]``."""
    audience_parameter: AudienceParameter = "audience"

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> OIDCSettings:
        """Return the settings in an extra.

        Raises:
            ValueError: which names are missing or wrong, without their values.
        """
        try:
            return cls.model_validate(dict(extra))
        except ValidationError as error:
            wrong = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise ValueError("; ".join(wrong)) from None

    def credentials(self, client_id: str, client_secret: str) -> OIDCCredentials:
        """Return the source of tokens for this client."""
        return OIDCCredentials(
            self.issuer,
            client_id,
            client_secret,
            ca=self.ca_file,
            fts_scope=self.fts_scope,
            fts_audience=self.fts_audience,
            managed=self.managed_tokens,
            overwrites=self.overwrite,
            audiences=self.audiences,
            audience_parameter=self.audience_parameter,
        )
