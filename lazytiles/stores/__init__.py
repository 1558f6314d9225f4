"""Samples written once, whole or not at all, and read again."""
