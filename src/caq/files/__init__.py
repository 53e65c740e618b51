"""Files: written whole, read with every problem reported, and the cache that runs share."""
