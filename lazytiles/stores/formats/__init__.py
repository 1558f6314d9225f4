"""How each kind of store lays out its rows."""
