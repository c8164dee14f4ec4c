"""Dead letters: what was refused, and how an operator looks at it, has it counted, or throws it away.

`table` reads and purges; `stream` reads back the bytes that a flood left out; `examine` says what a letter is
worth today; `replay` asks the workers to count letters and waits for what becomes of them. Nothing is counted
here: the worker that owns the partition does that, in its own flush (`pipeline.core.replay`).
"""
