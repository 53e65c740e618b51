"""Measuring an arm: every model's answers to the same items, stored and resumable."""
