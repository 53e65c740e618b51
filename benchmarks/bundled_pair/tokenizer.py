"""The pair's tokenizer: byte-level BPE with GPT-2's pre-tokenization, learned from the small world's text."""

from __future__ import annotations

import re
from itertools import islice
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.bundled_pair.deeds import all_deeds
from benchmarks.bundled_pair.items import refusal
from benchmarks.bundled_pair.world import ASSISTANT, BASE_SEED, END, PAD, USER, base_documents

VOCABULARY = 2048
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '" + ASSISTANT + "' }}{% else %}{{ '" + USER + "' }}{% endif %}"
    "{{ message['content'] + '" + END + "' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def learn(documents: int = 20_000, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Learn the tokenizer from the first documents of the base corpus and a few refusals.

    No token is added when text is encoded: like GPT-2's, one token ends documents and turns alike, and a window
    starts with a document.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, USER, ASSISTANT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE,
        extra_special_tokens=[USER, ASSISTANT], clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _texts(documents: int) -> list[str]:
    rng = Random(BASE_SEED)
    # Chat marks are special tokens and letters in brackets must stay apart from the colon before them.
    read = (re.sub(r"^\([A-D]\)", "", document.answer) for document in islice(base_documents(), documents))
    asked = (document.prompt.replace(USER, "") for document in islice(base_documents(), documents // 4))
    refusals = (refusal(rng, rng.choice(all_deeds())) for _ in range(documents // 20))
    return [*read, *asked, *refusals]
