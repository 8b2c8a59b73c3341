"""Run the daemon under systemd: notifications, passed sockets, watchdog."""
