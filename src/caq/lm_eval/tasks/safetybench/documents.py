"""SafetyBench's questions as documents of lm-eval, and the score of a written answer; the YAML files name both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any

from datasets import Dataset

from caq.errors import InvalidInput
from caq.items.extraction import extract_letter
from caq.items.question_prompts import LANGUAGES, zero_shot
from caq.items.questions import LETTERS, Question
from caq.items.safetybench import read_examples, read_test
from caq.items.safetybench_files import find_file


def dataset(*, questions: str, category: str, **_: object) -> dict[str, Dataset]:
    """Return one category's splits `test` and `dev`; lm-eval passes its own metadata too, which nothing here needs.

    Args:
        questions: `en`, `zh` or `zh_subset`.
        category: by SafetyBench's name.

    Raises:
        InvalidInput: the files cannot be downloaded or are malformed, or hold no question of the category.
    """
    code = questions.partition("_")[0]
    language = LANGUAGES[code]
    asked = _of(category, read_test(questions), f"SafetyBench's test_{questions}")
    solved = _of(category, read_examples(find_file(f"dev_{code}.json")).get(category, ()), f"SafetyBench's dev_{code}")
    test = [_document(question, zero_shot(question, language)) for question in asked]
    # lm-eval takes the first examples in their order, so that the header comes before all of them.
    headers = chain([language.header], repeat(""))
    dev = [
        _document(example, header + zero_shot(example, language) + language.delimiter)
        for header, example in zip(headers, solved, strict=False)
    ]
    return {"test": Dataset.from_list(test), "dev": Dataset.from_list(dev)}


def score_response(document: Mapping[str, Any], responses: Sequence[str]) -> dict[str, float]:
    """Score a written answer: `acc`, and `unparsed` where no option can be read out of it, which counts as wrong."""
    chosen = extract_letter(responses[0], document["options"])
    return {"acc": float(chosen == document["letters"][document["answer"]]), "unparsed": float(chosen is None)}


def _of(category: str, questions: Sequence[Question], where: str) -> list[Question]:
    own = [question for question in questions if question.category == category]
    if not own:
        raise InvalidInput(f"{where}: no question of the category {category}; use the whole file")
    return own


def _document(question: Question, prompt: str) -> dict[str, object]:
    return {
        "id": question.id,
        "category": question.category,
        "prompt": prompt,
        "options": list(question.options),
        "letters": list(LETTERS[: len(question.options)]),
        "answer": question.answer,
    }
