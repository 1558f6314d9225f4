"""Keys, windows, tilings, orders: integers only, no file."""
