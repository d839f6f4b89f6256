"""An adapter's own settings: their model, and the types that a setting can have besides Python's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StrictStr, ValidationInfo
from pydantic_core import PydanticCustomError

from syncd.config import SecretRef
from syncd.errors import StartError
from syncd.model import SecretText


def _inside(value: Path, info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("base", Path())) / value.expanduser()


FolderPath = Annotated[Path, AfterValidator(_inside)]
"""A path in an adapter's settings; a relative one is relative to the configuration file's folder."""


def _address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or "@" in value:
        raise ValueError("this is not an address: write https://HOST, without user, query or fragment")
    return value.rstrip("/")


Url = Annotated[StrictStr, AfterValidator(_address)]
"""An http address in an adapter's settings, without a slash at its end."""


def _secret(value: object, info: ValidationInfo) -> SecretText:
    if isinstance(value, SecretText):
        return value
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004 - pydantic takes ValueError for a wrong value
            'a secret is never written into the configuration: { credential = "NAME" }, { file = "PATH" } or'
            ' { env = "NAME" } says where it lies'
        )
    ref = SecretRef.model_validate(value, context=info.context)
    if sum(place is not None for place in (ref.credential, ref.file, ref.env)) != 1:
        raise ValueError("a secret lies in exactly one place: name one of credential, file, env")
    try:
        found = ref.secret()
    except StartError as error:
        raise PydanticCustomError("secret", "{message}", {"message": error.message, "fix": error.hint}) from None
    if not found.reveal():
        raise ValueError(f"{ref.where} is empty: put the secret there")
    return found


Secret = Annotated[SecretText, BeforeValidator(_secret)]
"""A credential in an adapter's settings: written as a reference, read as a SecretText, which prints as ``***``."""


class Settings(BaseModel):
    """The adapter's own part of ``[suppliers.NAME]``. Subclass it, name each setting and its default.

    Unknown settings and wrong types are configuration problems, reported with all others before the daemon starts.
    The docstring below a setting is its description.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
    )
