from __future__ import annotations

import pytest

from caq.recipe import Recipe, preset


def recipe(text: str, prompts: str | None = None) -> Recipe:
    return preset("default").with_overrides({"data.text": text, "data.prompts": prompts})


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/alice/my text.txt", "my text.txt"),
        ("data/train.jsonl", "train.jsonl"),
        (r"C:\Users\alice\my.txt", "my.txt"),
        ("/data/sets/mine/", "./mine"),
        ("/data/wikitext2", "./wikitext2"),
        ("wikitext2", "wikitext2"),
        ("my.txt", "my.txt"),
        ("/", "/"),
    ],
)
def test_a_public_recipe_has_names_and_no_directories(text: str, public: str) -> None:
    told = recipe(text).public()
    assert told.data.text == public
    assert told.public() == told
    assert Recipe.from_yaml(told.to_yaml()) == told
    assert told.fingerprint() == recipe(text).fingerprint()


def test_prompts_are_told_by_name_too() -> None:
    assert recipe("self", "/home/alice/prompts.txt").public().data.prompts == "prompts.txt"
    assert recipe("self").public().data.prompts is None


def test_another_name_is_another_recipe() -> None:
    assert recipe("/a/one.txt").fingerprint() == recipe("/b/one.txt").fingerprint() != recipe("two.txt").fingerprint()
