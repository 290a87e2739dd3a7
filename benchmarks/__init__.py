"""The numbers batchd promises, each measured beside what a user would pick instead.

One file per number (`n1_noop`, `n4_tail`, ...) holds its goals, its contenders and nothing else, `deadly` what those
about deaths have in common; `registry` lists them, and `peers/` holds who else competes, if asked. `rounds` runs
contenders in turn and refuses a time whose results are wrong; `page`, `plots`, `table` and `machine` tell what came
out. Nothing here is imported by batchd, and no test asserts a time.
"""
