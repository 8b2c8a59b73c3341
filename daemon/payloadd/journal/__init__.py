"""The journal: keeps accepted jobs until they are stored."""
