"""Checkpoints: where they come from, whether they are whole and fit together, and how they are written."""
