"""One image file as a lazy array; the only wing that opens image files."""
