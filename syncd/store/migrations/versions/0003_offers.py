"""Offers: what suppliers list, how far each listing is known, and what a run did to it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables of offers, and a run's counts of them."""
    with op.batch_alter_table("run", schema=None) as batch_op:
        for name in ("offers", "offers_changed", "offers_removed"):
            batch_op.add_column(sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.create_table(
        "listing",
        sa.Column("supplier", sa.Text(), nullable=False),
        sa.Column("watermark", sa.BigInteger(), nullable=True),
        sa.Column("good_at", sa.BigInteger(), nullable=True),
        sa.Column("full_at", sa.BigInteger(), nullable=True),
        sa.Column("offers", sa.BigInteger(), nullable=False),
        sa.Column("held_offers", sa.BigInteger(), nullable=False),
        sa.Column("pending", sa.Text(), nullable=True),
        sa.Column("pending_at", sa.BigInteger(), nullable=True),
        sa.Column("accepted_at", sa.BigInteger(), nullable=True),
        sa.Column("balance", sa.Text(), nullable=True),
        sa.Column("balance_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("supplier", name=op.f("pk_listing")),
        comment="How far each supplier's listing is known: last good run, last complete one, a change that waits (P1).",
    )
    op.create_table(
        "offer",
        sa.Column("supplier", sa.Text(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("price", sa.Text(), nullable=True),
        sa.Column("currency", sa.Text(), nullable=True),
        sa.Column("stock_kind", sa.Text(), nullable=False),
        sa.Column("stock_quantity", sa.BigInteger(), nullable=True),
        sa.Column("stock_level", sa.Text(), nullable=True),
        sa.Column("for_sale", sa.Boolean(), nullable=False),
        sa.Column("min_quantity", sa.BigInteger(), nullable=False),
        sa.Column("max_quantity", sa.BigInteger(), nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.Column("recorded", sa.BigInteger(), nullable=False),
        sa.Column("held", sa.Text(), nullable=True),
        sa.Column("held_at", sa.BigInteger(), nullable=True),
        sa.Column("refresh_at", sa.Float(), nullable=True),
        sa.CheckConstraint(
            "stock_kind IN ('exact', 'coarse', 'unlimited', 'unknown')", name=op.f("ck_offer_stock_kind")
        ),
        sa.PrimaryKeyConstraint("supplier", "sku", name=op.f("pk_offer")),
        comment="What suppliers list, as last accepted. held is a price that waits to be confirmed (P1).",
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("offer", schema=None) as batch_op:
        batch_op.create_index(
            "ix_offer_removed",
            ["supplier", "removed_at"],
            unique=False,
            sqlite_where=sa.text("removed_at IS NOT NULL"),
            postgresql_where=sa.text("removed_at IS NOT NULL"),
        )
        batch_op.create_index(
            "ix_offer_held",
            ["supplier"],
            unique=False,
            sqlite_where=sa.text("held IS NOT NULL"),
            postgresql_where=sa.text("held IS NOT NULL"),
        )
    op.create_table(
        "offer_history",
        sa.Column("supplier", sa.Text(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("until_at", sa.BigInteger(), nullable=False),
        sa.Column("price", sa.Text(), nullable=True),
        sa.Column("currency", sa.Text(), nullable=True),
        sa.Column("stock_kind", sa.Text(), nullable=False),
        sa.Column("stock_quantity", sa.BigInteger(), nullable=True),
        sa.Column("stock_level", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("supplier", "sku", "slot", name=op.f("pk_offer_history")),
        comment="What an offer cost and held before: a ring of slots an offer, so that it never grows.",
        sqlite_with_rowid=False,
    )
