"""What people look at: plots, pages, statistics."""
