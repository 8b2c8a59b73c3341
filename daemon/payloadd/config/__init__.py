"""Settings, read from the environment and from systemd's credentials."""
