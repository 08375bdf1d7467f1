"""The five tables, the champion table with its history, and the trial ledger."""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)


def _pointer_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("bundle", sa.String(300), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("model_id", sa.String(80), nullable=False),
        sa.Column("segments", sa.JSON, nullable=False),
        sa.Column("as_of", INSTANT, nullable=False),
        sa.Column("promoted_at", INSTANT, nullable=False),
        sa.Column("previous", sa.String(300)),
        sa.Column("synthetic", sa.Boolean, nullable=False),
    ]


def _models() -> None:
    op.create_table(
        "models",
        sa.Column("model_id", sa.String(80), primary_key=True),
        sa.Column("parent_id", sa.String(80)),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("s3_path", sa.String(300), nullable=False),
        sa.Column("features_used", sa.JSON, nullable=False),
        sa.Column("params", sa.JSON, nullable=False),
        sa.Column("symbol", sa.String(20), nullable=False, index=True),
        sa.Column("timeframe", sa.String(4), nullable=False),
        sa.Column("regime", sa.String(8), nullable=False),
        sa.Column("lineage", sa.String(64), nullable=False),
        sa.Column("as_of", INSTANT, nullable=False),
        sa.Column("status", sa.String(8), sa.CheckConstraint("status in ('active', 'inactive')", name="model_status"), nullable=False),
    )
    op.create_table(
        "model_metrics",
        sa.Column(
            "model_id", sa.String(80), sa.ForeignKey("models.model_id", name="metrics_of_model", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("sharpe", sa.Float),
        sa.Column("hit_rate", sa.Float),
        sa.Column("drawdown", sa.Float, nullable=False),
        sa.Column("net_bps", sa.Float),
        sa.Column("window", sa.String(24), quote=True),
        sa.Column("cost_bps", sa.Float),
        sa.Column("promoted", sa.Boolean, nullable=False),
        sa.Column("sample_size", sa.Integer, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
    )


def _champions() -> None:
    op.create_table(
        "champion",
        sa.Column("symbol", sa.String(20), primary_key=True),
        sa.Column("generation", sa.Integer, nullable=False),
        *_pointer_columns(),
    )
    op.create_table(
        "champion_history",
        sa.Column("symbol", sa.String(20), primary_key=True),
        sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
        *_pointer_columns(),
    )
    op.create_table(
        "promotions",
        sa.Column("symbol", sa.String(20), primary_key=True),
        sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("from_model_id", sa.String(80)),
        sa.Column("to_model_id", sa.String(80), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("snapshot", sa.JSON, nullable=False),
    )


def _live() -> None:
    op.create_table(
        "live_trades",
        sa.Column("trade_id", sa.String(80), primary_key=True),
        sa.Column("time", INSTANT, nullable=False, index=True),
        sa.Column("symbol", sa.String(20), nullable=False, index=True),
        sa.Column("side", sa.String(5), sa.CheckConstraint("side in ('long', 'short')", name="trade_side"), nullable=False),
        sa.Column("size", sa.Float, nullable=False),
        sa.Column("entry", sa.Float, nullable=False),
        sa.Column("exit", sa.Float),
        sa.Column("fees", sa.Float, nullable=False),
        sa.Column("net_pnl", sa.Float),
        sa.Column("model_id", sa.String(80)),
        sa.Column("decision_id", sa.String(80), index=True),
        sa.Column("closed_at", INSTANT),
        sa.Column("attribution", sa.JSON),
    )
    op.create_table(
        "daily_equity",
        sa.Column("date", sa.Date, primary_key=True),
        sa.Column("nav", sa.Float, nullable=False),
        sa.Column("max_dd", sa.Float, nullable=False),
        sa.Column("turnover", sa.Float, nullable=False),
        sa.Column("fees_bps", sa.Float, nullable=False),
    )


def upgrade() -> None:
    """Create every table."""
    _models()
    _champions()
    _live()
    op.create_table(
        "trials",
        sa.Column("recipe_hash", sa.String(64), primary_key=True),
        sa.Column("segment", sa.String(40), primary_key=True),
        sa.Column("first_seen", INSTANT, nullable=False),
        sa.Column("sharpe", sa.Float),
    )


def downgrade() -> None:
    """Refuse: the champion table is the authority over what trades; restore a backup instead."""
    raise NotImplementedError("the library is never migrated down; restore a backup")
