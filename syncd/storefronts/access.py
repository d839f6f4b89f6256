"""Who may do what: tokens, hashed at rest, and peers of the unix sockets. Called by the native API for every request.

Default deny: a caller is a `Principal` with rights, or nobody. Tokens lie in the database under a keyed hash; in memory
they are found by it, and a small table from a token's SHA-256 spares the hot route the rest.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
import string
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import select

from syncd.errors import InvalidRequestError, NotFoundError
from syncd.model import IdSource, Principal, Right, SecretText, utc
from syncd.store.database import Database, Lane, Tx, Work, Writer
from syncd.store.tables import token as token_table
from syncd.vault.keyring import Keyring

if TYPE_CHECKING:
    from syncd.config import Shop

OPERATOR: Final = "operator"
ALL_RIGHTS: Final = frozenset(Right)
SHOP_RIGHTS: Final = frozenset({Right.STOCK, Right.DELIVER, Right.REVEAL, Right.METRICS})
"""What a shop's token may be given."""
UNIX_RIGHTS: Final = frozenset({Right.STOCK, Right.DELIVER})
"""What a shop's user on the unix socket has, and nothing more."""

_PREFIX: Final = "syncd_"
_LETTERS: Final = string.ascii_letters + string.digits
_RANDOM: Final = 40  # characters: 238 bits
_REMEMBERED: Final = 1024


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a unix socket, as the kernel says (SO_PEERCRED)."""

    listener: Literal["api", "operator"]
    uid: int
    user: str


@dataclass(frozen=True, slots=True, repr=False)
class _Known:
    digest: bytes
    principal: Principal


@dataclass(frozen=True, slots=True, repr=False)
class _New:
    id: int
    principal: str
    label: str
    rights: str
    digest: bytes
    by: str


class Access:
    """The tokens of this database, and who a request comes from. ``own_uid``: the user the daemon runs as."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        ring: Keyring,
        ids: IdSource,
        shops: Callable[[], Mapping[str, Shop]],
        *,
        own_uid: int | None = None,
    ) -> None:
        self._database = database
        self._writer = writer
        self._ring = ring
        self._ids = ids
        self._shops = shops
        self._operators = frozenset({0, os.getuid() if own_uid is None else own_uid})
        self._known: dict[bytes, _Known] = {}
        self._recent: dict[bytes, _Known] = {}
        self._version = 0
        self._create: Work[_New, None] = Work("token_create", Lane.CONTROL, _create)
        self._revoke: Work[tuple[int, str], None] = Work("token_revoke", Lane.CONTROL, _revoke)

    async def refresh(self) -> None:
        """Read the tokens: at the start, and now and then where other daemons share the database."""
        await asyncio.to_thread(self._load)

    def _load(self) -> None:
        while True:
            version = self._version
            with self._database.read() as connection:
                rows = connection.execute(
                    select(token_table.c.id, token_table.c.principal, token_table.c.rights, token_table.c.hash).where(
                        token_table.c.revoked_at.is_(None)
                    )
                ).all()
            known = {
                bytes(row.hash): _Known(bytes(row.hash), Principal(row.principal, _rights(row.rights), row.id))
                for row in rows
            }
            if version == self._version:  # else one was made or revoked meanwhile: what was read may be older
                break
        if known != self._known:
            self._known, self._recent = known, {}

    # --- who is calling ---------------------------------------------------------------------------------------------

    def caller(self, scope: MutableMapping[str, Any]) -> Principal | None:
        """Whose request this is, or None. A token counts before the socket it comes over, and a bad one ends it."""
        for name, value in scope["headers"]:
            if name == b"authorization":
                return self._bearer(value)
        peer: Peer | None = scope.get("syncd.peer")
        return None if peer is None else self._of_peer(peer)

    def principal(self, token: str) -> Principal | None:
        """Whose token this is, or None."""
        return self._bearer(b"Bearer " + token.encode())

    def _bearer(self, header: bytes) -> Principal | None:
        if header[:7].lower() != b"bearer ":
            return None
        token = header[7:]
        short = hashlib.sha256(token).digest()
        found = self._recent.get(short)
        if found is None:
            digest = self._ring.token_hash(token.strip().decode("latin-1"))
            found = self._known.get(digest)
            if found is None or not hmac.compare_digest(found.digest, digest):
                return None
            if len(self._recent) >= _REMEMBERED:
                self._recent.pop(next(iter(self._recent)))
            self._recent[short] = found
        principal = found.principal
        return principal if principal.name == OPERATOR or principal.name in self._shops() else None

    def _of_peer(self, peer: Peer) -> Principal | None:
        if peer.listener == OPERATOR:
            return Principal(OPERATOR, ALL_RIGHTS) if peer.uid in self._operators else None
        names = {peer.user, str(peer.uid)} - {""}
        shops = [name for name, shop in self._shops().items() if not names.isdisjoint(shop.unix_users)]
        # A user of two shops could take one's keys for the other's order: he needs a token that says which.
        return Principal(shops[0], UNIX_RIGHTS) if len(shops) == 1 else None

    # --- tokens -----------------------------------------------------------------------------------------------------

    async def create(
        self, principal: str, rights: Iterable[Right], label: str = "", *, by: str
    ) -> tuple[int, SecretText]:
        """A new token: (id, the token itself, which is known only now). Raises InvalidRequestError."""
        wanted = frozenset(rights)
        if principal != OPERATOR and principal not in self._shops():
            raise InvalidRequestError(
                "there is no such shop", hint=f'add [shops.NAME] to the configuration, or name "{OPERATOR}"'
            )
        if not wanted:
            raise InvalidRequestError("a token without rights is of no use", hint=f"some of {', '.join(Right)}")
        if principal != OPERATOR and not wanted <= SHOP_RIGHTS:
            raise InvalidRequestError(
                "a shop's token cannot operate", hint=f'make it for the principal "{OPERATOR}" instead'
            )
        text = SecretText(_PREFIX + "".join(secrets.choice(_LETTERS) for _ in range(_RANDOM)))
        digest = self._ring.token_hash(text.reveal())
        new = _New(self._ids.next(), principal, label, " ".join(sorted(wanted)), digest, by)
        await self._writer.submit(self._create, new)
        self._version += 1
        self._known = {**self._known, digest: _Known(digest, Principal(principal, wanted, new.id))}
        return new.id, text

    async def revoke(self, token_id: int, *, by: str) -> None:
        """Make a token worthless, here at once and at other daemons within seconds. Raises NotFoundError."""
        await self._writer.submit(self._revoke, (token_id, by))
        self._version += 1
        self._known = {digest: known for digest, known in self._known.items() if known.principal.token_id != token_id}
        self._recent = {}

    def list(self) -> list[dict[str, Any]]:
        """Every token ever made, without its text, newest first. Blocks."""
        table = token_table.c
        with self._database.read() as connection:
            rows = connection.execute(
                select(
                    table.id, table.principal, table.label, table.rights, table.created_at, table.revoked_at
                ).order_by(table.id.desc())
            ).all()
        return [
            {
                "id": str(row.id),
                "principal": row.principal,
                "rights": row.rights.split(),
                "label": row.label,
                "created_at": utc(row.created_at),
                "revoked_at": None if row.revoked_at is None else utc(row.revoked_at),
            }
            for row in rows
        ]


def _rights(text: str) -> frozenset[Right]:
    """The rights in a row; one that this program does not know gives nothing."""
    known = {str(right): right for right in Right}
    return frozenset(known[word] for word in text.split() if word in known)


def _create(tx: Tx, tokens: Sequence[_New]) -> list[None]:
    for new in tokens:
        tx.bulk(
            "INSERT INTO token (id, principal, label, rights, hash, created_at)"
            " SELECT id, principal, label, rights, hash, ? FROM rows",
            "id int, principal text, label text, rights text, hash bytes",
            [(new.id, new.principal, new.label, new.rights, new.digest)],
            (tx.at,),
        )
        tx.audit("token.created", token=new.id, principal=new.principal, rights=new.rights, by=new.by)
    return [None] * len(tokens)


def _revoke(tx: Tx, payloads: Sequence[tuple[int, str]]) -> list[BaseException | None]:
    outcomes: list[BaseException | None] = []
    for token_id, by in payloads:
        if tx.execute("UPDATE token SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (tx.at, token_id)):
            tx.audit("token.revoked", token=token_id, by=by)
        elif not tx.query("SELECT 1 FROM token WHERE id = ?", (token_id,)):
            outcomes.append(NotFoundError("there is no such token", hint="list them: syncd token list"))
            continue
        outcomes.append(None)
    return outcomes
