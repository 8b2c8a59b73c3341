"""The daemon under systemd: notifications, passed sockets, watchdog."""
