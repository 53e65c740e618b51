"""Does a response keep the language of its prompt? N-Mix, the share of its n-grams that are of another language.

After the N-gram-based Language-Mix score (arXiv:2510.23949), the share of a response's n-grams whose language is not
the prompt's. Here n-grams are of words and overlap, and an n-gram is of another language where the prompt's is
unlikely, not where another is the likeliest: neighbours such as Spanish and Galician share what is so short. The
identifier is py3langid: a hundred languages, 4.6 MB, offline. On sentences in 15 languages, no n-gram was taken for
another language's, and of those in another language 0.3 % were missed; of XSTest's English completions, 0.7 % of the
n-grams are taken for another language's (tests/measure/test_mixing.py).
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

#: Words of an n-gram: with fewer the identifier errs, with more a short change of language is lost.
WORDS = 5
#: Probability from which a prompt's language is known, and below which an n-gram is of another.
KNOWN, UNLIKELY = 0.5, 0.05
#: N-Mix from which a response is in another language than its prompt.
OTHER = 0.5
#: Nigerian Pidgin, whose short sentences are English ones.
_ALIKE = ("pcm",)

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
#: What stands above, below or behind letters, in Latin, Hebrew, Arabic and the scripts of India.
_SIGNS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff"
# Where nothing separates words, two characters stand for one.
_WORD = re.compile(rf"[{_UNSPACED}]{{1,2}}|(?:[^\W\d_{_UNSPACED}]|[{_SIGNS}])+(?:['’-][^\W\d_]+)*")


def n_mix(prompt: str, response: str) -> float | None:
    """Return the share of a response's n-grams, in [0, 1], that are of another language than its prompt.

    None where that says nothing: a response of fewer than `WORDS` words, or a prompt whose language is not known.
    """
    identifier, grams = _identifier(), _grams(response)
    language, probability = identifier.classify(prompt)
    if probability <= KNOWN or not grams:
        return None
    others: int = sum(dict(identifier.rank(gram))[language] < UNLIKELY for gram in grams)
    return others / len(grams)


def _grams(text: str) -> list[str]:
    spans = [word.span() for word in _WORD.finditer(text)]
    starts = range(len(spans) - WORDS + 1)
    return [text[spans[first][0] : spans[first + WORDS - 1][1]] for first in starts]


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([code for code in identifier.labels if code not in _ALIKE])
    return identifier
