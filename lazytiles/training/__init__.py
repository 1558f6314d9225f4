"""Sources in step to batches, and batches to a trainer."""
