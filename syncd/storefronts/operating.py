"""The operator's routes: suppliers, runs, keys, quarantine, tokens, recovery. Called by `native`; used by the commands.

Every one takes the right to operate; those that show a secret take the right to reveal too, those that show all of them
go over the operator's socket only, and each is in the audit before the secret leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final, Literal

import structlog
from fastapi import FastAPI, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from syncd.errors import InvalidRequestError, NotFoundError
from syncd.inventory.intake import TAKEN_FILE
from syncd.inventory.quarantine import Filter
from syncd.model import NAME_PATTERN, SKU_PATTERN, Right, SecretText
from syncd.orders.deliveries import UnknownProductError
from syncd.store.database import Lane, Tx, Work
from syncd.storefronts.guard import OPERATE, REVEAL, SOCKET, Rule, by
from syncd.storefronts.payloads import MOST, opened, spooled
from syncd.storefronts.problems import Problem, TooLargeError
from syncd.vault.crypto import export_kek

if TYPE_CHECKING:
    from syncd.storefronts.native import Parts

log = structlog.get_logger(__name__)

_MOST_ROWS: Final = 64 << 20
"""Bytes of an uploaded workbook: it is unpacked in memory."""

PRINTED: Final = r"^[^\x00-\x1f\x7f]*$"


def _fits(number: str) -> str:
    if int(number) >= 2**63:
        raise ValueError("there is no such id")
    return number


Id = Annotated[int, Path(ge=1, le=2**63 - 1)]
Sku = Annotated[str, Path(pattern=SKU_PATTERN)]
QuerySku = Annotated[str, Query(pattern=SKU_PATTERN)]
Name = Annotated[str, Path(pattern=NAME_PATTERN)]
QueryName = Annotated[str, Query(pattern=NAME_PATTERN)]
WORD: Final = r"^[a-z_]{1,48}$"
Word = Annotated[str | None, Query(pattern=WORD)]
Text = Annotated[str, Field(max_length=200, pattern=PRINTED)]
Why = Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*\S[^\x00]*$")]
BodyId = Annotated[str, Field(pattern=r"^[0-9]{1,19}$"), AfterValidator(_fits)]
MOST_S: Final = 10**10
FileName = Annotated[str, Query(max_length=255, pattern=r"^[^\x00-\x1f\x7f/]+$")]


class Body(BaseModel):
    """A request's body: nothing in it but what is named here."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Started(BaseModel):
    """A run that begins."""

    run: str


class Imported(BaseModel):
    """What became of an upload. ``report`` has a line for each slice that was quarantined, and no key."""

    state: str
    source: str
    counts: dict[str, Any]
    report: str


class Release(Body):
    """How to read a slice again; by default as its product says."""

    format: Text | None = None
    split: Text | None = None


class Released(BaseModel):
    """The key that a slice became."""

    key: str


class Drop(Body):
    """Why a slice is no key to be sold."""

    why: Why


class Many(Body):
    """Which held entries are meant: those to which all of this applies. ``upto`` is the last one's id."""

    product: Annotated[str, Field(pattern=SKU_PATTERN)] | None = None
    supplier: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    reason: Annotated[str, Field(pattern=WORD)] | None = None
    older_than_s: Annotated[int, Field(ge=0, le=MOST_S)] | None = None
    upto: BodyId | None = None

    def filter(self) -> Filter:
        """The same, as `Quarantine` takes it."""
        upto = None if self.upto is None else int(self.upto)
        return Filter(self.product, self.supplier, self.reason, self.older_than_s, upto)


class RereadMany(Many):
    """How to read them again; ``after`` is where the last answer ended."""

    format: Text | None = None
    split: Text | None = None
    after: BodyId = "0"
    dry_run: bool = False


class RereadAnswer(BaseModel):
    """What came of a page of entries. Ask again with ``next`` as ``after``, until it is null."""

    seen: int
    keys: int = Field(description="How many became keys; in a dry run, would become.")
    duplicates: int = Field(description="How many are keys seen before: they stay, and name the first source.")
    unreadable: dict[str, int] = Field(description="Reason: how many still are no key.")
    decided: int = Field(description="How many somebody else decided meanwhile.")
    examples: list[str] = Field(description="Some of the keys, masked.")
    next: str | None


class DropMany(Many):
    """Why they are no keys to be sold. A dry run counts them, and gives ``upto`` for the drop itself."""

    why: Why | None = None
    dry_run: bool = False


class Dropped(BaseModel):
    """How many were dropped, or would be. ``more``: ask again for the rest."""

    dropped: int
    more: bool = False
    upto: str | None = None


class Some(Body):
    """Some entries."""

    entries: list[BodyId] = Field(min_length=1, max_length=500)

    def ids(self) -> list[int]:
        """The same as numbers."""
        return [int(entry) for entry in self.entries]


class Complaint(Some):
    """What to tell the suppliers of these entries. ``again``: even if it was told before."""

    text: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*$")]
    again: bool = False


class Settled(Body):
    """What became of a return without an answer: the supplier has ``taken`` it, or it is ours still."""

    taken: bool


class Revealed(BaseModel):
    """A slice in clear."""

    text: str


class NewToken(Body):
    """A token to be made. ``principal`` is a shop, or ``operator``."""

    principal: Annotated[str, Field(pattern=NAME_PATTERN)]
    rights: list[Literal["stock", "deliver", "reveal", "operate", "metrics"]] = Field(min_length=1, max_length=5)
    label: Text = ""


class MadeToken(BaseModel):
    """A token, shown this once."""

    id: str
    token: str
    principal: str
    rights: list[str]
    label: str


class Passphrase(Body):
    """What a recovery copy opens under."""

    passphrase: Annotated[str, Field(min_length=12, max_length=1024)]


def _run_noted(tx: Tx, payloads: Sequence[tuple[str, Mapping[str, Any]]]) -> list[None]:
    for kind, body in payloads:
        tx.audit(kind, **body)
    return [None] * len(payloads)


_NOTED: Final[Work[tuple[str, Mapping[str, Any]], None]] = Work("noted", Lane.CONTROL, _run_noted)


def install(app: FastAPI, parts: Parts) -> None:
    """Add the operator's routes."""
    _suppliers(app, parts)
    _offers(app, parts)
    _keys(app, parts)
    _quarantine(app, parts)
    _quarantine_many(app, parts)
    _tokens(app, parts)
    _recovery(app, parts)


def stated(rule: Rule, *tags: str, status: int = 200, **extra: Any) -> dict[str, Any]:
    """What a route's decorator takes: who may use it, and how it is described."""
    return {
        "openapi_extra": {"rule": rule, **extra},
        "tags": list(tags),
        "status_code": status,
        "responses": {"default": {"model": Problem, "description": "What is wrong."}},
    }


def _suppliers(app: FastAPI, parts: Parts) -> None:
    @app.get("/v1/status", **stated(OPERATE, "operator"))
    def status() -> dict[str, Any]:
        """How the daemon is: suppliers, keys by product and state, what waits for somebody."""
        return parts.status()

    @app.get("/v1/suppliers", **stated(OPERATE, "suppliers"))
    def suppliers() -> dict[str, list[dict[str, Any]]]:
        """Every configured supplier with its state and its last run."""
        return {"suppliers": parts.sync.suppliers()}

    @app.post("/v1/suppliers/{name}/sync", **stated(OPERATE, "suppliers", status=202))
    async def sync(name: Name, request: Request) -> Started:
        """Sync a supplier now. 409 ``already_running`` names the run in ``run`` when it is one of this daemon's."""
        return Started(run=str(await parts.sync.start(name, by(request))))

    @app.get("/v1/suppliers/{name}/runs", **stated(OPERATE, "suppliers"))
    def runs(name: Name, limit: Annotated[int, Query(ge=1, le=500)] = 20) -> dict[str, list[dict[str, Any]]]:
        """The last runs of a supplier, newest first."""
        if name not in parts.settings().suppliers:
            raise NotFoundError("there is no such supplier", hint="list them: syncd status")
        return {"runs": parts.sync.runs(name, limit)}

    @app.get("/v1/runs/{run}", **stated(OPERATE, "suppliers"))
    def run(run: Id) -> dict[str, Any]:
        """One run, with its progress while it is under way here."""
        return parts.sync.run(run)


def _offers(app: FastAPI, parts: Parts) -> None:
    @app.get("/v1/offers", **stated(OPERATE, "offers"))
    def offers(
        supplier: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
        product: QuerySku | None = None,
        q: Annotated[str, Query(max_length=200, pattern=PRINTED)] = "",
        after: Annotated[str, Query(max_length=240, pattern=PRINTED)] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """What suppliers list, by supplier and sku: a page, and `next` to ask for the one `after` it."""
        return parts.catalogue.find(supplier=supplier, product=product, text=q, after=after, limit=limit)

    @app.get("/v1/suppliers/{name}/history", **stated(OPERATE, "offers"))
    def history(
        name: Name, sku: Annotated[str, Query(min_length=1, max_length=200, pattern=PRINTED)]
    ) -> dict[str, Any]:
        """What one offer cost and held before, newest first."""
        return {"history": parts.catalogue.history(name, sku)}

    @app.post("/v1/suppliers/{name}/accept", **stated(OPERATE, "offers", status=202))
    async def accept(name: Name, request: Request) -> Started:
        """Accept what is held of a supplier's listing: the run that this starts takes it over, if it is no worse."""
        return Started(run=str(await parts.sync.accept(name, by(request))))


def _keys(app: FastAPI, parts: Parts) -> None:
    @app.post("/v1/keys/import", **stated(OPERATE, "keys", max_body=MOST + 1))
    async def import_(
        product: Annotated[str, Query(pattern=SKU_PATTERN)], name: FileName, request: Request
    ) -> Imported:
        """Take a payload of keys in: the body is the file. The same content again changes nothing."""
        if product not in parts.settings().products:
            raise UnknownProductError("there is no such product", hint="add [products.SKU] to the configuration")

        def seal(reader: BinaryIO, writer: BinaryIO) -> None:
            parts.ring.seal_file(reader, writer, TAKEN_FILE)

        spool, size = await spooled(_sent(request), parts.settings().daemon.state_dir, seal)
        with spool:
            if name.lower().endswith(".xlsx") and size > _MOST_ROWS:
                raise TooLargeError("the workbook is too large", hint="save it as CSV")

            def clear() -> BinaryIO:
                return opened(spool, lambda file: parts.ring.open_file(file, TAKEN_FILE))

            report = await asyncio.to_thread(parts.intake.import_file, product, name, size, clear)
        return Imported(state=report.state, source=report.source, counts=asdict(report.counts), report=report.text)

    @app.post("/v1/keys/unseal", response_class=StreamingResponse, **stated(SOCKET, "keys", max_body=MOST + 1))
    async def unseal(request: Request) -> Response:
        """A sealed file in clear: both bodies are files. Nothing is answered unless all of it opens."""
        spool, _ = await spooled(_sent(request), parts.settings().daemon.state_dir, _copied)

        def chunks() -> Iterator[bytes]:
            spool.seek(0)
            return parts.ring.open_file(spool, TAKEN_FILE)

        try:
            size = await asyncio.to_thread(lambda: sum(map(len, chunks())))
            await parts.writer.submit(_NOTED, ("file.unsealed", {"bytes": size, "by": by(request)}))
        except BaseException:
            spool.close()
            raise

        async def clear() -> AsyncIterator[bytes]:
            with spool:
                async for chunk in iterate_in_threadpool(chunks()):
                    yield chunk

        return StreamingResponse(
            clear(), media_type="application/octet-stream", headers={"Content-Length": str(size), **_NO_STORE}
        )

    @app.post("/v1/products/{sku}/unhold", **stated(OPERATE, "keys"))
    async def unhold(sku: Sku, request: Request) -> dict[str, int]:
        """Make a product's held keys available again: somebody vouches that they were not delivered."""
        return {"released": await parts.quarantine.unhold(sku, by(request))}


def _copied(reader: BinaryIO, writer: BinaryIO) -> None:
    while block := reader.read(1 << 18):
        writer.write(block)


async def _sent(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        raise NotFoundError("the upload ended early") from None  # nobody is left to read this


_NO_STORE: Final = {"Cache-Control": "no-store"}


def _quarantine(app: FastAPI, parts: Parts) -> None:
    @app.get("/v1/quarantine", **stated(OPERATE, "quarantine"))
    def entries(
        product: QuerySku | None = None,
        supplier: QueryName | None = None,
        reason: Word = None,
        older_than_s: Annotated[int, Query(ge=0, le=MOST_S)] | None = None,
        state: Literal["held", "released", "dropped", "returning", "returned"] = "held",
        after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
        limit: Annotated[int, Query(ge=1, le=1_000_000)] = 50,
    ) -> dict[str, Any]:
        """What waits for a decision, oldest first, a page of 500 at most; never the key itself."""
        chosen = Filter(product, supplier, reason, older_than_s)
        return parts.quarantine.page(chosen, state=state, after=after, limit=limit)

    @app.get("/v1/quarantine/{entry}", **stated(OPERATE, "quarantine"))
    def entry(entry: Id) -> dict[str, Any]:
        """One entry, its text masked."""
        return parts.quarantine.show(entry)

    @app.post("/v1/quarantine/{entry}/reveal", **stated(REVEAL, "quarantine"))
    async def reveal(entry: Id, request: Request, response: Response) -> Revealed:
        """The text of one entry, in clear."""
        response.headers.update(_NO_STORE)
        return Revealed(text=await parts.quarantine.reveal(entry, by(request)))

    @app.post("/v1/quarantine/{entry}/release", **stated(OPERATE, "quarantine"))
    async def release(entry: Id, how: Release, request: Request) -> Released:
        """Read an entry again and put its key into the vault."""
        return Released(key=str(await parts.quarantine.release(entry, how.format, how.split, by(request))))

    @app.post("/v1/quarantine/{entry}/drop", **stated(OPERATE, "quarantine"))
    async def drop(entry: Id, told: Drop, request: Request) -> dict[str, str]:
        """Decide that an entry is no key to be sold."""
        await parts.quarantine.drop(entry, told.why, by(request))
        return {"state": "dropped"}

    @app.post("/v1/quarantine/{entry}/settle", **stated(OPERATE, "quarantine"))
    async def settle(entry: Id, told: Settled, request: Request) -> dict[str, str]:
        """Say what became of a return that was never answered."""
        return {"state": await parts.quarantine.settle(entry, taken=told.taken, by=by(request))}


def _quarantine_many(app: FastAPI, parts: Parts) -> None:
    @app.post("/v1/quarantine/reread", **stated(OPERATE, "quarantine"))
    def reread(many: RereadMany, request: Request) -> RereadAnswer:
        """Read many entries of a product again, for about a second; those that are keys now go into the vault."""
        found = parts.quarantine.reread(
            many.filter(),
            by=by(request),
            fmt=many.format,
            split=many.split,
            after=int(many.after),
            dry_run=many.dry_run,
        )
        return RereadAnswer(**{**asdict(found), "next": None if found.next is None else str(found.next)})

    @app.post("/v1/quarantine/drop", **stated(OPERATE, "quarantine"))
    def drop_many(many: DropMany, request: Request) -> Dropped:
        """Decide, for about a second, that many entries are no keys to be sold."""
        chosen = many.filter()
        if many.dry_run:
            number, upto = parts.quarantine.matching(chosen)
            return Dropped(dropped=number, upto=str(upto))
        if many.why is None or (many.product is None and many.supplier is None and many.reason is None):
            raise InvalidRequestError(
                "why, and one of product, supplier and reason, are needed", hint="nothing is dropped by mistake"
            )
        dropped, more = parts.quarantine.drop_many(chosen, many.why, by(request))
        return Dropped(dropped=dropped, more=more)

    @app.post("/v1/quarantine/return", **stated(OPERATE, "quarantine"))
    async def give_back(some: Some, request: Request) -> dict[str, list[dict[str, Any]]]:
        """Return keys to their suppliers: the state of each, and why. They are not sold meanwhile."""
        return {"entries": await parts.quarantine.give_back(some.ids(), by(request))}

    @app.post("/v1/quarantine/complain", **stated(OPERATE, "quarantine"))
    async def complain(told: Complaint, request: Request) -> dict[str, list[dict[str, Any]]]:
        """Complain to the suppliers of these entries, once an order."""
        found = await parts.quarantine.complain(told.ids(), told.text, by(request), again=told.again)
        return {"entries": found}


def _tokens(app: FastAPI, parts: Parts) -> None:
    @app.get("/v1/tokens", **stated(OPERATE, "tokens"))
    def tokens() -> dict[str, list[dict[str, Any]]]:
        """Every token ever made, without its text."""
        return {"tokens": parts.access.list()}

    @app.post("/v1/tokens", **stated(OPERATE, "tokens", status=201))
    async def create(new: NewToken, request: Request, response: Response) -> MadeToken:
        """Make a token. Its text is in this answer and nowhere else."""
        rights = [Right(right) for right in new.rights]
        made, text = await parts.access.create(new.principal, rights, new.label, by=by(request))
        response.headers.update(_NO_STORE)
        return MadeToken(
            id=str(made), token=text.reveal(), principal=new.principal, rights=sorted(set(rights)), label=new.label
        )

    @app.delete("/v1/tokens/{token}", **stated(OPERATE, "tokens", status=204))
    async def revoke(token: Id, request: Request) -> None:
        """Make a token worthless, for ever."""
        await parts.access.revoke(token, by=by(request))


def _recovery(app: FastAPI, parts: Parts) -> None:
    @app.post("/v1/recover", **stated(OPERATE, "recovery"))
    async def recover(request: Request) -> dict[str, int]:
        """After a restore: hold every key that cannot be proven undelivered, then deliver again."""
        held = await parts.quarantine.recover(by(request))
        parts.deliveries.fenced = False
        return {"held": held}

    @app.post("/v1/vault/kek/export", **stated(SOCKET, "recovery"))
    async def export(under: Passphrase, request: Request, response: Response) -> dict[str, str]:
        """A recovery copy of the key-encryption key under a passphrase."""
        text = await asyncio.to_thread(export_kek, parts.kek, SecretText(under.passphrase))
        await parts.writer.submit(_NOTED, ("kek.exported", {"kek": parts.kek.id, "by": by(request)}))
        response.headers.update(_NO_STORE)
        return {"text": text}
