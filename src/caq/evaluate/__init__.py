"""Measures of a causal language model: perplexity, choices, refusals, distance to a reference."""
