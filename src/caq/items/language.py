"""The language of questions, by their script: Chinese where there are Han characters, or else English."""

from __future__ import annotations

import re
from collections.abc import Sequence

from caq.errors import InvalidInput
from caq.items.question_prompts import LANGUAGES
from caq.items.questions import Question

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
# Of a question's letters. SafetyBench's Chinese questions have 0.5 and more (one asks for the best of three
# passwords), its English ones none.
CHINESE_SHARE = 0.2


def detect(questions: Sequence[Question], source: object) -> str:
    """Return `zh` or `en`, whichever all questions are written in.

    Raises:
        InvalidInput: some are Chinese and some are not.
    """
    chinese = [is_chinese(question) for question in questions]
    if len(set(chinese)) > 1:
        raise InvalidInput(
            f"{source}: {sum(chinese)} of {len(chinese)} questions are Chinese, such as id "
            f"{questions[chinese.index(True)].id}, and id {questions[chinese.index(False)].id} is not: put them "
            "into two files, or name the language of the words around them with --language"
        )
    return "zh" if any(chinese) else "en"


def contradictions(questions: Sequence[Question], language: str, source: object) -> list[str]:
    """Return the problem of asking `questions` in `language`, if most of them are in another."""
    chinese = sum(map(is_chinese, questions))
    theirs = {"zh": chinese, "en": len(questions) - chinese}
    if not questions or 2 * theirs[language] >= len(questions):
        return []
    other = "en" if language == "zh" else "zh"
    return [
        f"{source}: {theirs[other]} of {len(questions)} questions are {'Chinese' if other == 'zh' else 'not Chinese'}, "
        f"and would be asked in {LANGUAGES[language].name}: ask with --language {other}, or give a file in "
        f"{LANGUAGES[language].name}"
    ]


def is_chinese(question: Question) -> bool:
    """Return whether at least a fifth of the letters of the question and its options are Han characters."""
    text = "".join((question.question, *question.options))
    return len(HAN.findall(text)) >= max(1, CHINESE_SHARE * sum(map(str.isalpha, text)))
