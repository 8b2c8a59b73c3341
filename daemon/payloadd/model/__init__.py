"""Values that pass through all packages: jobs, batches, keys."""
