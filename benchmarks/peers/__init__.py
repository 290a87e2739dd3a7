"""What users would pick instead of batchd, behind one interface, each run in a process of its own.

`roster` lists them and makes contenders of them; `peer` is what each must be able to do; `ways` are the ways in which
a number uses one; `asking` and `child` are the two ends of the process it runs in. Each of the other files is a peer,
or a few alike. A peer that is new is a class in one of them and a line in the roster.
"""
