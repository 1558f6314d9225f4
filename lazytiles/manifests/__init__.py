"""The table: read, checked, made, opened."""
