"""The REST API under ``/analytics/v1``: it reads rollups, and nothing but rollups, to answer.

A request passes `app` (routes), `identity`, `tokens` and `keys` (who asks), `auth` (whether they may),
`handlers` (one function a route), `params` and `questions` (what was asked), `buckets` (time zones, and
which rollups cover a range), `rollups` and `seen` (SQL), `figures` and `answers` (what is shown). `database`
gives each request one read-only snapshot. `live` and `streams`
are server-sent events; `exports` makes files.
"""
