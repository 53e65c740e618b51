"""Learning the transforms: what the teachers say, and the loop that listens."""
