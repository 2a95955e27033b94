"""Alembic's environment: `outtray migrate` calls it with a connection of its own."""

from alembic import context

from outtray_schema.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table="alembic_version",
    version_table_schema="outtray",
    include_schemas=True,
)
with context.begin_transaction():
    context.run_migrations()
