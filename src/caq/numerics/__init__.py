"""Number formats: what a scheme means (`scheme`) and how it is simulated with gradients (`fake`)."""
