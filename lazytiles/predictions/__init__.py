"""A model over every tile; whole regions back."""
