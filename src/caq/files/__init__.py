"""Files: written whole, read with every problem told, and the cache that runs share."""
