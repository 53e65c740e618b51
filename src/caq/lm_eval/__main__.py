"""`python -m caq.lm_eval`: lm-eval's own command line, with a model type `caq` that keeps what runs online.

`lm_eval --model hf` reads a quantized checkpoint's weights and drops its online Hadamards and its cache quantization in
silence; lm-eval has no entry point through which an installed package could offer another model. All options are
lm-eval's: `python -m caq.lm_eval run --model caq --model_args pretrained=DIRECTORY --tasks mmlu`.
"""

from __future__ import annotations

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import get_dtype

from caq.loading import load, load_tokenizer
from caq.world import find_device


# lm-eval takes a model type as a subclass of its own; nothing of it is changed but how the model comes to be loaded.
@register_model("caq")
class Loaded(HFLM):  # type: ignore[misc]  # lm-eval carries no types.
    """A checkpoint that `caq.loading.load` loads.

    Args:
        pretrained: a local directory.
        dtype: of the computation, such as `float32`; `auto` takes the checkpoint's.
        device: `cpu`, or `cuda`, which is the default where there is one.
        options: any other of `HFLM`'s.
    """

    def __init__(self, pretrained: str, dtype: str = "auto", device: str | None = None, **options: object) -> None:
        chosen = find_device(device)
        model = load(pretrained, None if dtype == "auto" else get_dtype(dtype), chosen)
        super().__init__(pretrained=model, tokenizer=load_tokenizer(pretrained), **options)


if __name__ == "__main__":
    cli_evaluate()
