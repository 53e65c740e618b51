"""What the libraries say of themselves, silenced before they are imported: `caq` tells each stage once."""

from __future__ import annotations

from collections.abc import MutableMapping

_SILENT = {
    # The default of every bar that does not decide for itself, as those of Transformers and lm-eval. The hub's for
    # downloads do: they are shown on a terminal only. Two of compressed-tensors' do, too: see `loading.load`.
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    # Advice on how its functions are called, which is for the caller, not for the user.
    "TRANSFORMERS_VERBOSITY": "error",
}


def silence_libraries(environment: MutableMapping[str, str]) -> None:
    """Let no library's bar or advice run between the command's own lines; what the user has set stays."""
    for name, value in _SILENT.items():
        environment.setdefault(name, value)
