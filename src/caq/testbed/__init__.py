"""The bundled pair: a tiny base model, its aligned fine-tune, and the data they are measured on."""
