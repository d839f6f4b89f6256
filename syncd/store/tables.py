"""The schema on one page. Every table, index and rule that the database itself enforces stands here.

Ids are 63-bit and grow with time (model.IdSource), so that keys, deliveries and audit entries of one moment share
pages. Times are whole Unix seconds in UTC unless a name says otherwise. No column ever holds a key's plaintext: card
keys are in ``sealed`` blobs, and what is compared is a keyed fingerprint.

``migrations/`` builds the same schema step by step; a test compares the two on both engines.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# On SQLite a primary key is the rowid itself only when its type is INTEGER.
Id = BigInteger().with_variant(Integer(), "sqlite")


def _one_of(column: str, *values: str) -> CheckConstraint:
    allowed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({allowed})", name=column)


meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    comment="Facts about this database: the restore fence and when it was made.",
)

keyring = Table(
    "keyring",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("purpose", Text, nullable=False),
    Column("kek_id", Text, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("active", Boolean, nullable=False),
    _one_of("purpose", "data", "index", "audit", "token"),
    comment="Keys of the vault, each wrapped by the key-encryption key, which never lies here.",
)
Index("uq_keyring_active", keyring.c.purpose, unique=True, sqlite_where=text("active"), postgresql_where=text("active"))

token = Table(
    "token",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("principal", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("rights", Text, nullable=False),
    Column("hash", LargeBinary, nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    comment="Access tokens, hashed under a key of the ring.",
)

supplier = Table(
    "supplier",
    metadata,
    Column("name", Text, primary_key=True),
    Column("due_at", Float, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", Text),
    Column("leased_until", Float),
    Column("last_success_at", BigInteger),
    Column("failures", Integer, nullable=False),
    Column("last_error", Text),
    comment="When each supplier is due, and who runs it: the lease and the epoch that fences it (K13).",
)

supplier_health = Table(
    "supplier_health",
    metadata,
    Column("name", Text, primary_key=True),
    Column("config", Text, nullable=False),
    Column("stopped", Text, nullable=False),
    Column("open", Boolean, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("pause", Float, nullable=False),
    Column("until", Float, nullable=False),
    Column("since", Float, nullable=False),
    Column("why", Text, nullable=False),
    Column("asked_until", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
    _one_of("stopped", "", "auth", "config"),
    comment="What is known of each supplier: breaker, refused credentials, pauses; config is a keyed fingerprint.",
)

run = Table(
    "run",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("supplier", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("asked_by", Text, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("seen", BigInteger, nullable=False),
    Column("new", BigInteger, nullable=False),
    Column("repeats", BigInteger, nullable=False),
    Column("duplicates", BigInteger, nullable=False),
    Column("quarantined", BigInteger, nullable=False),
    Column("offers", BigInteger, nullable=False, server_default=text("0")),
    Column("offers_changed", BigInteger, nullable=False, server_default=text("0")),
    Column("offers_removed", BigInteger, nullable=False, server_default=text("0")),
    Column("error", Text),
    Index("ix_run_supplier_id", "supplier", "id"),
    comment="One row a sync run: what it saw, what was new, what went wrong.",
)

listing = Table(
    "listing",
    metadata,
    Column("supplier", Text, primary_key=True),
    Column("watermark", BigInteger),
    Column("good_at", BigInteger),
    Column("full_at", BigInteger),
    Column("offers", BigInteger, nullable=False),
    Column("held_offers", BigInteger, nullable=False),
    Column("pending", Text),
    Column("pending_at", BigInteger),
    Column("accepted_at", BigInteger),
    Column("balance", Text),
    Column("balance_at", BigInteger),
    Column("config", Text),
    comment="How far each supplier's listing is known: last good run, last complete one, a change that waits (P1).",
)

offer = Table(
    "offer",
    metadata,
    Column("supplier", Text, primary_key=True),
    Column("sku", Text, primary_key=True),
    Column("hash", LargeBinary, nullable=False),
    Column("title", Text, nullable=False),
    Column("price", Text),
    Column("currency", Text),
    Column("stock_kind", Text, nullable=False),
    Column("stock_quantity", BigInteger),
    Column("stock_level", Text),
    Column("for_sale", Boolean, nullable=False),
    Column("min_quantity", BigInteger, nullable=False),
    Column("max_quantity", BigInteger),
    Column("step", BigInteger, nullable=False),
    Column("data", Text, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Column("removed_at", BigInteger),
    Column("recorded", BigInteger, nullable=False),
    Column("held", Text),
    Column("held_at", BigInteger),
    Column("refresh_at", Float),
    Column("known_price", Text),  # the last one that was not unknown
    Column("known_currency", Text),
    _one_of("stock_kind", "exact", "coarse", "unlimited", "unknown"),
    sqlite_with_rowid=False,
    comment="What suppliers list, as last accepted. held is a price that waits to be confirmed (P1).",
)
Index(
    "ix_offer_removed",
    offer.c.supplier,
    offer.c.removed_at,
    sqlite_where=text("removed_at IS NOT NULL"),
    postgresql_where=text("removed_at IS NOT NULL"),
)
Index(
    "ix_offer_held",
    offer.c.supplier,
    sqlite_where=text("held IS NOT NULL"),
    postgresql_where=text("held IS NOT NULL"),
)

offer_history = Table(
    "offer_history",
    metadata,
    Column("supplier", Text, primary_key=True),
    Column("sku", Text, primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("until_at", BigInteger, nullable=False),
    Column("price", Text),
    Column("currency", Text),
    Column("stock_kind", Text, nullable=False),
    Column("stock_quantity", BigInteger),
    Column("stock_level", Text),
    sqlite_with_rowid=False,
    comment="What an offer cost and held before: a ring of slots an offer, so that it never grows.",
)

source = Table(
    "source",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("product", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("supplier", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("supersedes", BigInteger),
    Column("state", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("reading", Text, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("consumed", BigInteger, nullable=False),
    Column("cards", BigInteger, nullable=False),
    Column("sealed", BigInteger, nullable=False),
    Column("repeats", BigInteger, nullable=False),
    Column("duplicates", BigInteger, nullable=False),
    Column("quarantined", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("order_id", Text),
    _one_of("state", "taking", "taken", "changed"),
    UniqueConstraint("product", "name"),
    comment="Where keys came from (feed:SHA256), and how far each payload has been taken: bytes, last line.",
)

vault_key = Table(
    "vault_key",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("product", Text, nullable=False),
    Column("sealed_sku", Text, nullable=False),
    Column("source_id", BigInteger, ForeignKey("source.id"), nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    _one_of("state", "available", "reserved", "delivered", "held", "expired", "defective", "corrupt", "returned"),
    comment="The vault. sealed_sku and the source's name are bound into the seal (K3).",
)
# The one index a claim needs: it holds available keys only, so it costs the same at 1,000,000 delivered keys (K7).
Index(
    "ix_vault_key_available",
    vault_key.c.product,
    vault_key.c.expires_at,
    vault_key.c.id,
    sqlite_where=text("state = 'available'"),
    postgresql_where=text("state = 'available'"),
)

fingerprint = Table(
    "fingerprint",
    metadata,
    Column("fp", LargeBinary, primary_key=True),
    Column("key_id", BigInteger, nullable=False),
    sqlite_with_rowid=False,
    comment="The blind index: 16-byte HMACs of a key's de-duplication form and of its raw text (K5).",
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("product", Text, nullable=False),
    Column("source_id", BigInteger, ForeignKey("source.id"), nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("raw_fp", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("first_source_id", BigInteger),
    Column("sealed", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("resolved_at", BigInteger),
    Column("supplier_key", Text),
    Column("complained_at", BigInteger),
    Column("complaint", Text),
    _one_of("state", "held", "released", "dropped", "returning", "returned"),
    UniqueConstraint("source_id", "position", "raw_fp"),
    comment="Slices that could not be read or were seen before, sealed; an operator decides (K6).",
)
Index(
    "ix_quarantine_held",
    quarantine.c.product,
    quarantine.c.reason,
    quarantine.c.id,
    sqlite_where=text("state = 'held'"),
    postgresql_where=text("state = 'held'"),
)
Index(
    "ix_quarantine_returning",
    quarantine.c.product,
    quarantine.c.id,
    sqlite_where=text("state = 'returning'"),
    postgresql_where=text("state = 'returning'"),
)

delivery = Table(
    "delivery",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("shop", Text, nullable=False),
    Column("order_ref", Text, nullable=False),
    Column("product", Text, nullable=False),
    Column("quantity", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("completed_at", BigInteger),
    _one_of("state", "delivered", "pending", "cancelled"),
    CheckConstraint("quantity >= 1", name="quantity"),
    UniqueConstraint("shop", "order_ref"),
    comment="One paid order line and what became of it, for ever (M2).",
)
Index(
    "ix_delivery_pending",
    delivery.c.product,
    delivery.c.id,
    sqlite_where=text("state = 'pending'"),
    postgresql_where=text("state = 'pending'"),
)

allotment = Table(
    "allotment",
    metadata,
    Column("key_id", Id, ForeignKey("vault_key.id"), primary_key=True, autoincrement=False),
    Column("delivery_id", BigInteger, ForeignKey("delivery.id"), nullable=False),
    Column("unit", Integer, nullable=False),
    Column("withdrawn_at", BigInteger),
    comment="Which key went to which unit of which delivery. A key is in here once, for ever: UNIQUE(key).",
)
Index(
    "uq_allotment_unit",
    allotment.c.delivery_id,
    allotment.c.unit,
    unique=True,
    sqlite_where=text("withdrawn_at IS NULL"),
    postgresql_where=text("withdrawn_at IS NULL"),
)

supplier_key = Table(
    "supplier_key",
    metadata,
    Column("key_id", Id, ForeignKey("vault_key.id"), primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    comment="The supplier's own id of a key in the vault, where it has one: to claim it, or to return it.",
)

purchase = Table(
    "purchase",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("reference", Text, nullable=False, unique=True),
    Column("supplier", Text, nullable=False),
    Column("sku", Text, nullable=False),
    Column("product", Text, nullable=False),
    Column("quantity", Integer, nullable=False),
    Column("received", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("asked_by", Text, nullable=False),
    Column("listed", Text, nullable=False),
    Column("unit_cost", Text),
    Column("unit_limit", Text),
    Column("spend", BigInteger, nullable=False),
    Column("open_spend", BigInteger, nullable=False),
    Column("charged", Text),
    Column("supplier_order", Text),
    Column("tries", Integer, nullable=False),
    Column("polls", Integer, nullable=False),
    Column("next_at", Float),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", Text),
    Column("leased_until", Float),
    Column("created_at", BigInteger, nullable=False),
    Column("sent_at", BigInteger),
    Column("unknown_at", BigInteger),
    Column("closed_at", BigInteger),
    _one_of("state", "intended", "sent", "accepted", "unknown", "fulfilled", "disputed", "refunded", "refused"),
    CheckConstraint("quantity >= 1 AND received >= 0 AND spend >= 0 AND open_spend >= 0", name="numbers"),
    comment="One order of ours at a supplier (M1). spend and open_spend: millionths of the base currency.",
)
Index(
    "ix_purchase_open",
    purchase.c.product,
    purchase.c.id,
    sqlite_where=text("closed_at IS NULL"),
    postgresql_where=text("closed_at IS NULL"),
)
Index(
    "ix_purchase_due",
    purchase.c.next_at,
    sqlite_where=text("closed_at IS NULL AND next_at IS NOT NULL"),
    postgresql_where=text("closed_at IS NULL AND next_at IS NOT NULL"),
)
Index("ix_purchase_created_at", purchase.c.created_at)
Index("ix_purchase_supplier", purchase.c.supplier, purchase.c.created_at)
Index("ix_purchase_product", purchase.c.product, purchase.c.created_at)

reservation = Table(
    "reservation",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("shop", Text, nullable=False),
    Column("order_ref", Text, nullable=False),
    Column("product", Text, nullable=False),
    Column("quantity", Integer, nullable=False),
    Column("promised", Integer, nullable=False),
    Column("customer", LargeBinary),
    Column("state", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    _one_of("state", "held", "released", "expired", "delivered"),
    CheckConstraint("quantity >= 1 AND promised >= 0 AND promised <= quantity", name="quantity"),
    UniqueConstraint("shop", "order_ref"),
    comment="Keys held for an order that is not paid yet; promised units are to be bought. customer is an HMAC.",
)
Index(
    "ix_reservation_held",
    reservation.c.product,
    reservation.c.expires_at,
    sqlite_where=text("state = 'held'"),
    postgresql_where=text("state = 'held'"),
)
Index(
    "ix_reservation_customer",
    reservation.c.shop,
    reservation.c.customer,
    sqlite_where=text("state = 'held' AND customer IS NOT NULL"),
    postgresql_where=text("state = 'held' AND customer IS NOT NULL"),
)

reserved_key = Table(
    "reserved_key",
    metadata,
    Column("key_id", Id, ForeignKey("vault_key.id"), primary_key=True, autoincrement=False),
    Column("reservation_id", BigInteger, ForeignKey("reservation.id"), nullable=False),
    Index("ix_reserved_key_reservation_id", "reservation_id"),
    comment="Which keys a reservation holds, while it holds them.",
)

replacement = Table(
    "replacement",
    metadata,
    Column("key_id", Id, ForeignKey("vault_key.id"), primary_key=True, autoincrement=False),
    Column("delivery_id", BigInteger, ForeignKey("delivery.id"), nullable=False),
    Column("unit", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("supplier", Text, nullable=False),
    Column("claim", Text, nullable=False),
    Column("claim_note", Text, nullable=False),
    Column("claim_at", Float),
    Column("created_at", BigInteger, nullable=False),
    _one_of("claim", "open", "asking", "returned", "complained", "refused", "impossible"),
    comment="A delivered key that turned out to be defective, and what its supplier makes of it.",
)
Index("ix_replacement_supplier", replacement.c.supplier, replacement.c.created_at)
Index("ix_replacement_delivery_id", replacement.c.delivery_id)

demand = Table(
    "demand",
    metadata,
    Column("product", Text, primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("ordered", BigInteger, nullable=False),
    Column("missed", BigInteger, nullable=False),
    sqlite_with_rowid=False,
    comment="Units that were ordered in an hour (Unix time / 3600), and those that were refused for want of keys.",
)

demand_size = Table(
    "demand_size",
    metadata,
    Column("product", Text, primary_key=True),
    Column("week", BigInteger, primary_key=True, autoincrement=False),
    Column("quantity", BigInteger, primary_key=True, autoincrement=False),
    Column("orders", BigInteger, nullable=False),
    sqlite_with_rowid=False,
    comment="How many orders were of how many units, by week (Unix time / 604800).",
)

job = Table(
    "job",
    metadata,
    Column("name", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", Text),
    Column("leased_until", Float),
    comment="Work that one daemon does at a time, and the epoch that fences it (K13).",
)

audit = Table(
    "audit",
    metadata,
    Column("seq", Id, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    comment="Append-only record of every change of state; mac chains over the entry before (T1).",
)

audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
    comment="The last entry of the chain, moved by the last statement of each batch (K8).",
)

# Transitions that the database lets through: whatever the program believes, a delivered key never becomes available.
TRANSITIONS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "vault_key": (
        ("available", "reserved"),
        ("available", "delivered"),
        ("available", "expired"),
        ("available", "corrupt"),
        ("available", "returned"),
        ("available", "held"),
        ("held", "available"),
        ("held", "defective"),
        ("reserved", "held"),
        ("reserved", "available"),
        ("reserved", "delivered"),
        ("reserved", "expired"),
        ("reserved", "corrupt"),
        ("delivered", "defective"),
        ("delivered", "corrupt"),
        ("defective", "returned"),
        ("expired", "returned"),
    ),
    "delivery": (("pending", "delivered"), ("pending", "cancelled"), ("delivered", "pending")),
    "quarantine": (
        ("held", "released"),
        ("held", "dropped"),
        ("held", "returning"),
        ("returning", "held"),
        ("returning", "returned"),
    ),
    "purchase": (
        ("intended", "sent"),
        ("intended", "refused"),
        ("sent", "accepted"),
        ("sent", "unknown"),
        ("sent", "fulfilled"),
        ("sent", "disputed"),
        ("sent", "refunded"),
        ("sent", "refused"),
        ("unknown", "sent"),
        ("unknown", "accepted"),
        ("unknown", "fulfilled"),
        ("unknown", "disputed"),
        ("unknown", "refunded"),
        ("unknown", "refused"),
        ("accepted", "fulfilled"),
        ("accepted", "disputed"),
        ("accepted", "refunded"),
        ("disputed", "fulfilled"),
        ("disputed", "refunded"),
    ),
    "reservation": (
        ("held", "released"),
        ("held", "expired"),
        ("held", "delivered"),
        ("released", "held"),
        ("released", "delivered"),
        ("expired", "held"),
        ("expired", "delivered"),
    ),
}
# Tables in which no row is ever changed or deleted, or (delete only) never deleted.
APPEND_ONLY: Final = {
    "audit": ("UPDATE", "DELETE"),
    "delivery": ("DELETE",),
    "allotment": ("DELETE",),
    "purchase": ("DELETE",),
}


def rules(dialect: str, among: Collection[str]) -> list[str]:
    """The triggers that enforce TRANSITIONS and APPEND_ONLY on these tables, for ``sqlite`` or ``postgresql``."""
    statements: list[str] = []
    if dialect == "postgresql":
        statements.append(
            "CREATE FUNCTION syncd_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE EXCEPTION 'syncd: % on % is not allowed', TG_OP, TG_TABLE_NAME "
            "USING ERRCODE = 'integrity_constraint_violation'; END$$"
        )
    statements += [transition_rule(dialect, table) for table in TRANSITIONS if table in among]
    statements += [append_rule(dialect, table, operation) for table, operation in _append_only(among)]
    return statements


def transition_rule(dialect: str, table: str) -> str:
    """The trigger that enforces a table's TRANSITIONS."""
    pairs = ", ".join(f"'{old}>{new}'" for old, new in TRANSITIONS[table])
    illegal = f"OLD.state <> NEW.state AND OLD.state || '>' || NEW.state NOT IN ({pairs})"
    return _trigger(dialect, f"{table}_transition", table, "UPDATE OF state", illegal)


def append_rule(dialect: str, table: str, operation: str) -> str:
    """The trigger that refuses an ``operation`` (UPDATE, DELETE) on a table of APPEND_ONLY."""
    return _trigger(dialect, f"{table}_no_{operation.lower()}", table, operation, "")


def _append_only(among: Collection[str]) -> Iterator[tuple[str, str]]:
    for table, operations in APPEND_ONLY.items():
        if table in among:
            yield from ((table, operation) for operation in operations)


def _trigger(dialect: str, name: str, table: str, operation: str, condition: str) -> str:
    if dialect == "postgresql":
        when = f"WHEN ({condition}) " if condition else ""
        return f"CREATE TRIGGER {name} BEFORE {operation} ON {table} FOR EACH ROW {when}EXECUTE FUNCTION syncd_refuse()"
    when = f"WHEN {condition} " if condition else ""
    return (
        f"CREATE TRIGGER {name} BEFORE {operation} ON {table} FOR EACH ROW {when}"
        f"BEGIN SELECT RAISE(ABORT, 'syncd: {operation} on {table} is not allowed'); END"
    )
