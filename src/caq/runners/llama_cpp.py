"""GGUF files through llama.cpp: the log-likelihoods, responses and logits that Transformers gives of other models.

llama.cpp computes its own kernels on the file's blocks, so that what is measured is what it serves, but for one thing:
its cache of keys and values is float32 here, where by default it is half precision. The file is judged, not the cache,
which alone moves the logits of the bundled pair by 0.03; a float32 file's differ from Transformers' by 5e-5. One
sequence is computed at a time.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import log_softmax
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from caq.errors import InvalidInput, Unsupported
from caq.runners.likelihood import Choice, Encoded, align, check_lengths
from caq.runners.states import CHUNK_ELEMENTS

SUFFIX = ".gguf"
#: Tokens of prompt and response; an 8B model's cache of them takes 1 GB.
CONTEXT = 4096
# What llama.cpp reads at once by default.
_LONGEST_CHUNK = 512


@dataclass(frozen=True)
class Gguf:
    """An opened file.

    Attributes:
        path: of the file.
        engine: the module `llama_cpp`.
        llama: its `Llama`, with one context.
        batch: room for `chunk` tokens, which llama.cpp reads at once.
        context: tokens of the longest sequence.
        vocabulary: number of tokens, and of the logits.
    """

    path: Path
    engine: ModuleType
    llama: Any
    batch: Any
    chunk: int
    context: int
    vocabulary: int


@contextmanager
def opened(path: Path, context: int = CONTEXT, *, vocabulary_only: bool = False) -> Iterator[Gguf]:
    """Load a file for as long as the block runs; no sequence may be longer than it was trained for.

    With `vocabulary_only` nothing can be computed: its tokenizer and its metadata are there.

    Raises:
        InvalidInput: llama-cpp-python is not installed, or cannot load the file.
    """
    engine = _engine(path)
    threads = torch.get_num_threads()
    try:
        llama = engine.Llama(
            str(path), n_ctx=context, n_batch=_LONGEST_CHUNK, n_threads=threads, n_threads_batch=threads,
            type_k=engine.GGML_TYPE_F32, type_v=engine.GGML_TYPE_F32, swa_full=True,
            vocab_only=vocabulary_only, verbose=False,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        raise InvalidInput([f"{path}: llama.cpp does not load it ({error}); give a whole GGUF file"]) from error
    longest = min(llama.n_ctx(), engine.llama_model_n_ctx_train(llama.model))
    chunk = max(1, min(_LONGEST_CHUNK, CHUNK_ELEMENTS // llama.n_vocab()))
    batch = engine.llama_batch_init(chunk, 0, 1)
    try:
        yield Gguf(path, engine, llama, batch, chunk, longest, llama.n_vocab())
    finally:
        engine.llama_batch_free(batch)
        llama.close()


def encode(model: Gguf, texts: Iterable[str], add_special_tokens: bool) -> Iterator[array[int]]:
    """Yield every text's ids by the file's own tokenizer, which reads special tokens where a text spells them."""
    for text in texts:
        yield array("i", model.llama.tokenize(text.encode(), add_bos=add_special_tokens, special=True))


def scores(model: Gguf, choices: Sequence[Choice], *, add_special_tokens: bool = True) -> tuple[tuple[float, ...], ...]:
    """Return log P(continuation | prompt) in nats, by the rules of `caq.runners.likelihood.scores`.

    Raises:
        InvalidInput: strings longer than the model's context.
        Unsupported: llama.cpp cannot go back to the end of a prompt in this architecture.
    """
    encoded = align(lambda texts: encode(model, texts, add_special_tokens), choices)
    check_lengths(encoded, model.context)
    return tuple(_score(model, item) for item in encoded)


def greedy(model: Gguf, prompts: Sequence[str], max_new_tokens: int, *, add_special_tokens: bool) -> tuple[str, ...]:
    """Return one greedy response a prompt, without special tokens; any of the file's ends of generation ends it.

    Raises:
        InvalidInput: prompts that leave no room for a response.
    """
    found = greedy_tokens(model, list(encode(model, prompts, add_special_tokens)), max_new_tokens)
    return tuple(decode(model, tokens) for tokens in found)


def greedy_tokens(model: Gguf, encoded: Sequence[Sequence[int]], max_new_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of one response a prompt, with the token that ended it if one did.

    Raises:
        InvalidInput: as `greedy`.
    """
    problems = [
        f"prompt {index} is {len(ids)} tokens long and its answer up to {max_new_tokens}, "
        f"and the context of {model.path.name} {model.context}: remove it"
        for index, ids in enumerate(encoded, start=1)
        if len(ids) + max_new_tokens > model.context
    ]
    if problems:
        raise InvalidInput(problems)
    return tuple(tuple(_respond(model, ids, max_new_tokens)) for ids in encoded)


def decode(model: Gguf, ids: Sequence[int]) -> str:
    """Return the text of ids without special tokens; bytes that are no UTF-8 become the replacement character."""
    # Not the package's own `detokenize`, which drops tokens of more than 32 bytes.
    tokens = (model.engine.llama_token * len(ids))(*ids)
    vocabulary = model.engine.llama_model_get_vocab(model.llama.model)
    size = 0
    while True:
        text = ctypes.create_string_buffer(size)
        written = model.engine.llama_detokenize(vocabulary, tokens, len(ids), text, size, True, False)
        if written >= 0:
            return text.raw[:written].decode(errors="replace")
        size = -written


def predictions(
    model: Gguf, ids: Sequence[int], counted: int
) -> Iterator[tuple[Float[Tensor, "positions vocab"], Sequence[int]]]:
    """Yield the float32 logits that predict the last `counted` of `ids`, and these, a chunk at a time in order.

    Raises:
        InvalidInput: the ids are longer than the model's context.
    """
    if len(ids) > model.context:
        room = f"the context of {model.path.name} {model.context}"
        raise InvalidInput([f"a passage is {len(ids)} tokens long and {room}: use shorter windows"])
    done = len(ids) - counted
    for found in _logits(model, ids[:-1], 0, done - 1):
        yield torch.from_numpy(found), ids[done : done + len(found)]
        done += len(found)


def vocabulary_problem(model: Gguf, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return where the file's ids mean other tokens than the instruct model's; empty if nowhere."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if len(tokens) > model.vocabulary:
        return f"{model.path.name} has {model.vocabulary} tokens and the instruct model {len(tokens)}"
    vocabulary = model.engine.llama_model_get_vocab(model.llama.model)
    for index, token in enumerate(tokens):
        own = model.engine.llama_vocab_get_text(vocabulary, index).decode(errors="replace")
        if own != token:
            return f"token {index} is {own!r} in {model.path.name} and {token!r} in the instruct model"
    return ""


def tokenization_problem(
    model: Gguf, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool
) -> str:
    """Return how many texts the file's tokenizer reads otherwise than the instruct model's; empty if none."""
    theirs = tokenizer(list(texts), add_special_tokens=add_special_tokens, verbose=False)["input_ids"] if texts else []
    own = encode(model, texts, add_special_tokens)
    differing = [text for text, ours, ids in zip(texts, own, theirs, strict=True) if list(ours) != list(ids)]
    if not differing:
        return ""
    return (
        f"{model.path.name} tokenizes {len(differing)} of {len(texts)} texts otherwise than the instruct model, "
        f"such as {differing[0][:60]!r}; convert it again with its own pre-tokenizer"
    )


def _engine(path: Path) -> ModuleType:
    try:
        import llama_cpp
    except ImportError as error:
        raise InvalidInput([f"{path}: GGUF files need llama-cpp-python: pip install 'caq[gguf]'"]) from error
    found: ModuleType = llama_cpp
    return found


def _score(model: Gguf, item: Encoded) -> tuple[float, ...]:
    (first,) = _logits(model, item.shared, 0, len(item.shared) - 1)
    found = []
    for scored in item.scored:
        rows = chain(first, chain.from_iterable(_logits(model, scored[:-1], len(item.shared), 0)))
        found.append(
            sum(float(log_softmax(row.astype(np.float64))[token]) for row, token in zip(rows, scored, strict=True))
        )
    return tuple(found)


def _respond(model: Gguf, ids: Sequence[int], max_new_tokens: int) -> Iterator[int]:
    vocabulary = model.engine.llama_model_get_vocab(model.llama.model)
    kept, read = 0, ids
    for _ in range(max_new_tokens):
        (row,) = _logits(model, read, kept, len(read) - 1)
        token = int(row[-1].argmax())
        yield token
        if model.engine.llama_vocab_is_eog(vocabulary, token):
            return
        kept, read = kept + len(read), [token]


def _logits(model: Gguf, ids: Sequence[int], kept: int, first: int) -> Iterator[Float[np.ndarray, "positions vocab"]]:
    """Read `ids` behind the first `kept` tokens of the sequence before; yield the logits after `ids[first:]`."""
    engine, context, batch = model.engine, model.llama.ctx, model.batch
    if not engine.llama_memory_seq_rm(engine.llama_get_memory(context), -1, kept, -1):
        raise Unsupported(f"{model.path}: llama.cpp cannot go back in its architecture; give another format of it")
    for begin in range(0, len(ids), model.chunk):
        part = ids[begin : begin + model.chunk]
        batch.n_tokens = len(part)
        for index, token in enumerate(part):
            batch.token[index], batch.pos[index] = token, kept + begin + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = begin + index >= first
        if status := engine.llama_decode(context, batch):
            raise Unsupported(f"{model.path}: llama.cpp fails on {len(part)} tokens with status {status}")
        wanted = range(max(first - begin, 0), len(part))
        if wanted:
            rows = (engine.llama_get_logits_ith(context, index) for index in wanted)
            yield np.stack([np.ctypeslib.as_array(row, shape=(model.vocabulary,)) for row in rows])
