"""``spendstream top``: live spend in a terminal.

The room is a client of the REST API, like any other: it knows no database and no stream. In the order of
reading: `figures` (what is shown, as values), `texts` (how one value is written), `layout` (how values become
lines), `client` (one question to the API), `reading` (the questions of one view), `watch` (when they are
asked), `screen` (keys and drawing), `run` (what the command calls).
"""
