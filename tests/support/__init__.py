"""Parts of tests: the daemon as a process, clients, stores, faults."""
