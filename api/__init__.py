"""The REST API under ``/analytics/v1``: it answers from rollups, and writes none.

Rooms, in the order in which a request passes them: `app` builds the server and has the outermost middleware.
`contract` has the table of routes. `access` finds out who asks and whether they may. `handlers` has one
function a route. `asking` makes a question of the request's parameters. `reading` asks the database, in one
read-only snapshot a request. `answering` has the types of the answers, money, problems and validators.

`live` sends server-sent events. `exports` makes files. `health` and `metrics` tell about the process.
`errors` has the root of the exceptions.
"""
