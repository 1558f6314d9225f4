"""Many windows, regions and sources as one lazy array."""
