"""`spendstream bench`: how fast is it here, and is it still exact?

Every contender reads the same events in a process of its own. The contenders take turns, several times over.
Each answer is compared with a plain recount (`workload.recount`), and a wrong answer is a failure, even if
it was fast.

In order of reading: `workload` makes the events, and `answers` describes a right answer. `contenders` has the
rivals that need one process, and `servers` has those that need a broker and a database. `race` runs them.
`latency` asks the API how soon events are visible. `report` prints.
"""
