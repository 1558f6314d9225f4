"""What the pages of a file are: levels, series with axes, other images, and their scale."""
