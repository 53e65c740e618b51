"""The real pair: SmolLM2-135M-Instruct, and the same after an alignment of ours."""
