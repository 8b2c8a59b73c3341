"""What a payload costs: ``python -m tests.bench``."""
