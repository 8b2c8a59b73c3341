"""What tests are built with: the daemon as a process, stores, faults."""
