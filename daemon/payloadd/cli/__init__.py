"""The command ``payloadd`` and its subcommands."""
