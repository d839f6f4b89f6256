"""Buying ahead: purchases, reservations, replacements, what was asked for, and the suppliers' own ids of keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from syncd.store.tables import append_rule, transition_rule

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables, and the rules of their states; keep the last known price of an offer beside the present one."""
    for name in ("known_price", "known_currency"):
        op.add_column("offer", sa.Column(name, sa.Text(), nullable=True))
    op.execute("UPDATE offer SET known_price = price, known_currency = currency")
    op.add_column("listing", sa.Column("config", sa.Text(), nullable=True))
    op.create_table(
        "demand",
        sa.Column("product", sa.Text(), nullable=False),
        sa.Column("hour", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ordered", sa.BigInteger(), nullable=False),
        sa.Column("missed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("product", "hour", name=op.f("pk_demand")),
        comment="Units that were ordered in an hour (Unix time / 3600), and those that were refused for want of keys.",
        sqlite_with_rowid=False,
    )
    op.create_table(
        "demand_size",
        sa.Column("product", sa.Text(), nullable=False),
        sa.Column("week", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("quantity", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("orders", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("product", "week", "quantity", name=op.f("pk_demand_size")),
        comment="How many orders were of how many units, by week (Unix time / 604800).",
        sqlite_with_rowid=False,
    )
    op.create_table(
        "job",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("leased_until", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_job")),
        comment="Work that one daemon does at a time, and the epoch that fences it (K13).",
    )
    op.create_table(
        "purchase",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("supplier", sa.Text(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("product", sa.Text(), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("received", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("asked_by", sa.Text(), nullable=False),
        sa.Column("listed", sa.Text(), nullable=False),
        sa.Column("unit_cost", sa.Text(), nullable=True),
        sa.Column("unit_limit", sa.Text(), nullable=True),
        sa.Column("spend", sa.BigInteger(), nullable=False),
        sa.Column("open_spend", sa.BigInteger(), nullable=False),
        sa.Column("charged", sa.Text(), nullable=True),
        sa.Column("supplier_order", sa.Text(), nullable=True),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("polls", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.Float(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("leased_until", sa.Float(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", sa.BigInteger(), nullable=True),
        sa.Column("unknown_at", sa.BigInteger(), nullable=True),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "state IN ('intended', 'sent', 'accepted', 'unknown', 'fulfilled', 'disputed', 'refunded', 'refused')",
            name=op.f("ck_purchase_state"),
        ),
        sa.CheckConstraint(
            "quantity >= 1 AND received >= 0 AND spend >= 0 AND open_spend >= 0", name=op.f("ck_purchase_numbers")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_purchase")),
        sa.UniqueConstraint("reference", name=op.f("uq_purchase_reference")),
        comment="One order of ours at a supplier (M1). spend and open_spend: millionths of the base currency.",
    )
    op.create_index(
        "ix_purchase_open",
        "purchase",
        ["product", "id"],
        unique=False,
        sqlite_where=sa.text("closed_at IS NULL"),
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_index(
        "ix_purchase_due",
        "purchase",
        ["next_at"],
        unique=False,
        sqlite_where=sa.text("closed_at IS NULL AND next_at IS NOT NULL"),
        postgresql_where=sa.text("closed_at IS NULL AND next_at IS NOT NULL"),
    )
    op.create_index("ix_purchase_created_at", "purchase", ["created_at"], unique=False)
    op.create_index("ix_purchase_product", "purchase", ["product", "created_at"], unique=False)
    op.create_index("ix_purchase_supplier", "purchase", ["supplier", "created_at"], unique=False)
    op.create_table(
        "reservation",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("shop", sa.Text(), nullable=False),
        sa.Column("order_ref", sa.Text(), nullable=False),
        sa.Column("product", sa.Text(), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("promised", sa.Integer(), nullable=False),
        sa.Column("customer", sa.LargeBinary(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("state IN ('held', 'released', 'expired', 'delivered')", name=op.f("ck_reservation_state")),
        sa.CheckConstraint(
            "quantity >= 1 AND promised >= 0 AND promised <= quantity", name=op.f("ck_reservation_quantity")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reservation")),
        sa.UniqueConstraint("shop", "order_ref", name=op.f("uq_reservation_shop_order_ref")),
        comment="Keys held for an order that is not paid yet; promised units are to be bought. customer is an HMAC.",
    )
    op.create_index(
        "ix_reservation_held",
        "reservation",
        ["product", "expires_at"],
        unique=False,
        sqlite_where=sa.text("state = 'held'"),
        postgresql_where=sa.text("state = 'held'"),
    )
    op.create_index(
        "ix_reservation_customer",
        "reservation",
        ["shop", "customer"],
        unique=False,
        sqlite_where=sa.text("state = 'held' AND customer IS NOT NULL"),
        postgresql_where=sa.text("state = 'held' AND customer IS NOT NULL"),
    )
    op.create_table(
        "replacement",
        sa.Column("key_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("delivery_id", sa.BigInteger(), nullable=False),
        sa.Column("unit", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("supplier", sa.Text(), nullable=False),
        sa.Column("claim", sa.Text(), nullable=False),
        sa.Column("claim_note", sa.Text(), nullable=False),
        sa.Column("claim_at", sa.Float(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "claim IN ('open', 'asking', 'returned', 'complained', 'refused', 'impossible')",
            name=op.f("ck_replacement_claim"),
        ),
        sa.ForeignKeyConstraint(["delivery_id"], ["delivery.id"], name=op.f("fk_replacement_delivery_id")),
        sa.ForeignKeyConstraint(["key_id"], ["vault_key.id"], name=op.f("fk_replacement_key_id")),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_replacement")),
        comment="A delivered key that turned out to be defective, and what its supplier makes of it.",
    )
    op.create_index("ix_replacement_delivery_id", "replacement", ["delivery_id"], unique=False)
    op.create_index("ix_replacement_supplier", "replacement", ["supplier", "created_at"], unique=False)
    op.create_table(
        "reserved_key",
        sa.Column("key_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("reservation_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["vault_key.id"], name=op.f("fk_reserved_key_key_id")),
        sa.ForeignKeyConstraint(["reservation_id"], ["reservation.id"], name=op.f("fk_reserved_key_reservation_id")),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_reserved_key")),
        comment="Which keys a reservation holds, while it holds them.",
    )
    op.create_index("ix_reserved_key_reservation_id", "reserved_key", ["reservation_id"], unique=False)
    op.create_table(
        "supplier_key",
        sa.Column("key_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["vault_key.id"], name=op.f("fk_supplier_key_key_id")),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_supplier_key")),
        comment="The supplier's own id of a key in the vault, where it has one: to claim it, or to return it.",
    )

    bind = op.get_bind()
    for rule in (
        transition_rule(bind.dialect.name, "purchase"),
        transition_rule(bind.dialect.name, "reservation"),
        append_rule(bind.dialect.name, "purchase", "DELETE"),
    ):
        bind.exec_driver_sql(rule.replace("%", "%%") if bind.dialect.name == "postgresql" else rule)
