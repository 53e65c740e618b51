"""Statistics of paired outcomes: resampling, intervals, power. Numbers in, numbers out."""
