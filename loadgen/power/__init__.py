"""Power sources: where power and energy are read from, one file each, and the loop that reads them."""
