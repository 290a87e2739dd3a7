"""The command line: one verb a function, over the same rooms every program uses. Only here is anything printed."""
