"""Alembic's entry point: `Library.migrate` hands over an open connection, already inside a locked transaction."""

from alembic import context

from engine_resources.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
