"""What runs a model for the measuring half, whatever computes it."""
