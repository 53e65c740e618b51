"""What made the bundled pair: its world, its data, its training. `python -m benchmarks.bundled_pair DIR` builds it."""
