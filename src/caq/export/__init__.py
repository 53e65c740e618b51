"""Checkpoints that engines load."""

FORMATS: dict[str, object] = {"compressed-tensors": None}
