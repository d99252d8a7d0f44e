"""Runs programs that nobody has read, and says what became of them; knows nothing of models.

The tests and the verdict stay outside the jail: `grader.py` runs the test code, whose functions are stubs that send
typed values (`wire.py`) into the jail, where `inside.py` holds the solution and nothing else. The jail is bubblewrap
with namespaces (`isolation.py`), a filter of system calls (`system_calls.py`) and limits; `jail.py` starts it, measures
it and ends it. A keeper process (`keeper.py`) without any of our heavy imports forks a fresh grader per program, and
`runner.py` drives several keepers (`keeper_pipe.py`). Limits count CPU time, so that a busy machine changes no verdict.
"""
