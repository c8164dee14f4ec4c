"""What the pipeline and the API share: the schema, its migrations, the named queries, the settings.

``schema`` is the truth about tables; ``migrations`` brings a database there; ``editions`` applies what
the TimescaleDB edition at hand allows; ``queries`` holds the pipeline's SQL as named blocks.
"""
