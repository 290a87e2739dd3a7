"""Outside things, one per file: the journal (lmdb), processes, gauges (psutil), sockets, the folder."""
