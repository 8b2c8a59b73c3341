"""The parts of ``payloadd send``: read files, cut them into collections, post these."""
