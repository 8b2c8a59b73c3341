"""Objects out; knows nothing of jobs."""
