"""One module for each framework; each is imported only when it is used."""
