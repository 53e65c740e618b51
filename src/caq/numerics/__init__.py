"""Number formats: what a scheme means, the grids that formats round to, codes, and rounding with gradients."""
