"""Quarantine as a workplace: what goes back to a supplier, and by which order and key the supplier knows it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from syncd.store.tables import transition_rule

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_COLUMNS = (
    "id, product, source_id, position, raw_fp, reason, detail, first_source_id, sealed, state, created_at, resolved_at"
)
_STATES = "state IN ('held', 'released', 'dropped', 'returning', 'returned')"


def upgrade() -> None:
    """Add the columns and the states of a return."""
    op.add_column("source", sa.Column("order_id", sa.Text(), nullable=True))
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        for column in _added():
            op.add_column("quarantine", column)
        op.drop_constraint(op.f("ck_quarantine_state"), "quarantine", type_="check")
        op.create_check_constraint(op.f("ck_quarantine_state"), "quarantine", _STATES)
        bind.exec_driver_sql("DROP TRIGGER quarantine_transition ON quarantine")
    else:
        _rebuild(bind)
    op.create_index(
        "ix_quarantine_returning",
        "quarantine",
        ["product", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'returning'"),
        postgresql_where=sa.text("state = 'returning'"),
    )
    bind.exec_driver_sql(transition_rule(bind.dialect.name, "quarantine"))


def _added() -> list[sa.Column[str] | sa.Column[int]]:
    return [
        sa.Column("supplier_key", sa.Text(), nullable=True),
        sa.Column("complained_at", sa.BigInteger(), nullable=True),
        sa.Column("complaint", sa.Text(), nullable=True),
    ]


def _rebuild(bind: sa.Connection) -> None:
    """SQLite cannot change a constraint: the table is written anew. Nothing refers to it; its trigger goes with it."""
    bind.exec_driver_sql("ALTER TABLE quarantine RENAME TO quarantine_before")
    op.drop_index("ix_quarantine_held", table_name="quarantine_before")
    op.create_table(
        "quarantine",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("product", sa.Text(), nullable=False),
        sa.Column("source_id", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("raw_fp", sa.LargeBinary(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("first_source_id", sa.BigInteger(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("resolved_at", sa.BigInteger(), nullable=True),
        *_added(),
        sa.CheckConstraint(_STATES, name=op.f("ck_quarantine_state")),
        sa.ForeignKeyConstraint(["source_id"], ["source.id"], name=op.f("fk_quarantine_source_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quarantine")),
        sa.UniqueConstraint("source_id", "position", "raw_fp", name=op.f("uq_quarantine_source_id_position_raw_fp")),
        comment="Slices that could not be read or were seen before, sealed; an operator decides (K6).",
    )
    bind.exec_driver_sql(f"INSERT INTO quarantine ({_COLUMNS}) SELECT {_COLUMNS} FROM quarantine_before")  # noqa: S608
    op.drop_table("quarantine_before")
    op.create_index(
        "ix_quarantine_held",
        "quarantine",
        ["product", "reason", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'held'"),
    )
