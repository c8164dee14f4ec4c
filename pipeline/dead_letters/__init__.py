"""Dead letters: how an operator looks at rejected events, has them counted after all, or deletes them.

`table` lists and purges the dead letters. `stream` reads the bytes back that a flood left out. `examine` says
whether a letter may be counted today. `replay` asks the workers to count letters, and waits for the outcomes.
`life` has the states of a letter, and the steps between them.

Nothing is counted here. The worker that owns the partition counts the letters, in its own flush
(`pipeline.core.replay`).
"""
