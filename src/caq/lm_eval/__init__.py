"""General ability through lm-eval, and CAQ as a model type and task directory of it."""
