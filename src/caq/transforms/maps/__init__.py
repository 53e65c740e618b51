"""The maps that transforms are made of, whatever they stand between."""
