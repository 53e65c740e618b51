"""Function-preserving transforms: what they are, where they go, and how they reach the weights."""
