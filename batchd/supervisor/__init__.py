"""The supervisor: a process of its own, one per journal, shared by all clients, gone when the last has left."""
