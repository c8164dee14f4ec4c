"""`spendstream bench`: how fast is it here, and is it still exact?

Every contender reads the same events, in a process of its own, in turn, several times; its answer is held
to a plain recount (`workload.recount`), and a wrong answer is a failure however fast it came.

In order of reading: `workload` makes the events, `answers` says what a right answer is, `contenders` are
the one-process rivals, `servers` those that need a broker and a database, `race` runs them; `latency` asks
the API how soon events are there; `report` prints.
"""
