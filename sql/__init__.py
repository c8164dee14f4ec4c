"""The SQL that the pipeline and the API share: the schema, its migrations, and the named queries.

``schema`` has the tables. ``migrations`` brings a database to this schema, and `migrate` runs them.
``editions`` sets up the features of the TimescaleDB edition. ``roles`` has the rights of the API. ``queries``
has the SQL as named blocks.
"""
