"""N-Mix: which share of a response is in another language than its prompt, in several languages and on real answers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from caq.measure.mixing import OTHER, WORDS, n_mix

COMPLETIONS = Path(__file__).parents[3] / "shared" / "data" / "xstest" / "labelled_completions"
CAKE = {
    "en": ("How can I bake a cake without eggs?", "You can replace each egg with a mashed banana or with apple sauce."),
    "de": ("Wie kann ich einen Kuchen ohne Eier backen?", "Sie können jedes Ei durch eine zerdrückte Banane ersetzen."),
    "fr": ("Comment faire un gâteau sans œufs ?", "Vous pouvez remplacer chaque œuf par une banane bien écrasée."),
    "es": ("¿Cómo puedo hornear un pastel sin huevos?", "Puedes reemplazar cada huevo con un plátano muy machacado."),
    "it": ("Come posso preparare una torta senza uova?", "Puoi sostituire ogni uovo con una banana ben schiacciata."),
    "ru": ("Как мне испечь торт без яиц?", "Вы можете заменить каждое яйцо одним размятым бананом."),
    "tr": ("Yumurtasız kek nasıl yapabilirim?", "Her yumurtayı ezilmiş bir muzla değiştirebilirsiniz, çok kolay."),
    "zh": ("如何在不用鸡蛋的情况下烤蛋糕？", "你可以用捣碎的香蕉代替每个鸡蛋，也可以用苹果酱。"),
    "ja": ("卵を使わずにケーキを焼くにはどうすればいいですか。", "卵の代わりにつぶしたバナナを使うことができます。"),
    "ko": ("달걀 없이 케이크를 어떻게 만들 수 있나요?", "달걀 대신 으깬 바나나를 사용하면 맛있게 만들 수 있습니다."),
    "ar": ("كيف يمكنني خبز كعكة بدون بيض؟", "يمكنك استبدال كل بيضة بموزة مهروسة أو بصلصة التفاح."),
    "hi": ("मैं बिना अंडे के केक कैसे बना सकता हूँ?", "आप हर अंडे की जगह मसला हुआ केला इस्तेमाल कर सकते हैं।"),
}


@pytest.mark.parametrize("language", CAKE)
def test_an_answer_in_the_prompts_language_mixes_nothing(language: str) -> None:
    prompt, response = CAKE[language]
    assert n_mix(prompt, response) == 0


@pytest.mark.parametrize("language", CAKE)
def test_an_answer_in_another_language_is_mixed_for_the_most_part(language: str) -> None:
    prompt, _ = CAKE[language]
    others = [n_mix(prompt, response) for other, (_, response) in CAKE.items() if other != language]
    assert all(share is not None and share > OTHER for share in others)


@pytest.mark.parametrize("language", ["de", "fr", "ru", "tr", "ar"])
def test_a_change_of_language_in_the_middle_is_in_between(language: str) -> None:
    prompt, response = CAKE["en"]
    share = n_mix(prompt, f"{response} {CAKE[language][1]}")
    assert share is not None
    assert 0.2 < share < 0.8
    # What is in between grows with what is in the other language.
    more = n_mix(prompt, f"{response} {CAKE[language][1]} {CAKE[language][1]}")
    assert more is not None
    assert more > share


@pytest.mark.parametrize("response", ["", "1 + 1 = 2", "Yes.", "one two three four", "?!?!", "\ufffd\ufffd"])
def test_what_is_too_short_or_no_words_is_not_judged(response: str) -> None:
    assert len(response.split()) <= WORDS
    assert n_mix(CAKE["en"][0], response) is None


def test_a_prompt_whose_language_is_not_known_judges_nothing() -> None:
    assert n_mix("12345", CAKE["en"][1]) is None


@pytest.mark.skipif(not COMPLETIONS.exists(), reason="shared data is not here")
def test_english_completions_are_english() -> None:
    shares = []
    for file in sorted(COMPLETIONS.glob("*.csv"))[:1]:
        with file.open(encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))[::4]
        shares += [n_mix(row["prompt"], " ".join(row["completion"].split()[:32])) for row in rows]
    judged = [share for share in shares if share is not None]
    assert len(judged) > 0.9 * len(shares)
    assert sum(judged) / len(judged) < 0.02
    assert all(share < OTHER for share in judged)
