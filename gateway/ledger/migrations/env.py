"""Alembic's way in: `gateway.ledger.migrate` gives the connection, inside its transaction."""

from alembic import context

from gateway.ledger import peer_tables, tables  # noqa: F401 - with both, all tables are known
from gateway.ledger.metadata import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
