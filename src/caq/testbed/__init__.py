"""The bundled pair: a small world of text, a tiny base model and its aligned fine-tune, built from nothing."""
