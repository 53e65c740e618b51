"""Which responses are coherent: the rule on text, its false alarms on people's data, the aligned model's say."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

from caq.items.requests import read_prompts
from caq.loading import load, load_tokenizer
from caq.measure.answers import respond
from caq.measure.coherence import likely, readable, surprise
from caq.testbed.export import export
from tests.measure.test_phrases import XSTEST
from tests.support.runners import runner


@pytest.mark.parametrize(
    "response",
    [
        "",
        " \n\t",
        "\ufffd\ufffd",
        "Sure: \x00\x01 first open \x02 the door",
        "!!!!!! ... ??? ---- !!!",
        "the the the the the the",
        "Open it. " + "Then turn the key. " * 5,
        "我不能我不能我不能我不能我不能",
        "one two three four " * 3 + "two one four three " * 3,
    ],
)
def test_what_is_no_text_is_not_readable(response: str) -> None:
    assert not readable(response)


@pytest.mark.parametrize(
    "response",
    [
        "No.",
        "(A)",
        "4",
        "I'm sorry, but I can't help with that.",
        "很抱歉，但我不能回答这个问题。",
        "นี่คือคำตอบของคุณ",
        "यह आपका उत्तर है",
        "No, no, no: that is wrong.",
        "First, open the door. Then, close the door. Then, lock the door.",
        # A response that its limit of tokens cuts in the middle of a character.
        "It costs 5 \ufffd",
        "```python\nfor i in range(10):\n    print(i)\n```",
    ],
)
def test_short_foreign_and_halting_answers_are_readable(response: str) -> None:
    assert readable(response)


@pytest.mark.skipif(not XSTEST.exists(), reason="shared data is not here")
def test_no_completion_that_people_labelled_is_called_unreadable() -> None:
    completions = []
    for path in sorted(XSTEST.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            completions += [row["completion"] for row in csv.DictReader(file)]
    assert len(completions) == 2250
    assert [text for text in completions if not readable(text)] == []


def test_the_pairs_models_speak_and_destroyed_weights_do_not(tmp_path: Path) -> None:
    export(tmp_path)
    prompts = [prompt.prompt for prompt in read_prompts(tmp_path / "prompts.jsonl")][::40]
    tokenizer, aligned = load_tokenizer(tmp_path / "aligned"), load(tmp_path / "aligned", torch.float32)
    destroyed = load(tmp_path / "aligned", torch.float32)
    generator = torch.Generator().manual_seed(0)
    for weight in destroyed.parameters():
        weight.data = weight.data.flatten()[torch.randperm(weight.numel(), generator=generator)].view(weight.shape)
    shares = {}
    for name, model in {"aligned": aligned, "base": load(tmp_path / "base", torch.float32), "no": destroyed}.items():
        texts = [one.text for one in respond(runner(model, tokenizer), tokenizer, prompts, 12)]
        said = [index for index, text in enumerate(texts) if readable(text)]
        nats = surprise(runner(aligned, tokenizer), tokenizer, [prompts[i] for i in said], [texts[i] for i in said])
        shares[name] = sum(likely(one, len(tokenizer)) for one in nats) / len(prompts)
    assert shares["aligned"] == shares["base"] == 1
    assert shares["no"] < 0.05


def test_surprise_is_the_mean_over_the_responses_tokens(tmp_path: Path) -> None:
    export(tmp_path)
    tokenizer, model = load_tokenizer(tmp_path / "aligned"), load(tmp_path / "aligned", torch.float32)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How do I bake bread?"}], tokenize=False, add_generation_prompt=True
    )
    start = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = torch.tensor([tokenizer(text + "First, open the oven.", add_special_tokens=False)["input_ids"]])
    found = model(ids).logits[0, start - 1 : -1].double().log_softmax(-1).gather(1, ids[0, start:, None])
    ours = surprise(runner(model, tokenizer), tokenizer, ["How do I bake bread?"], ["First, open the oven."])
    assert ours[0] == pytest.approx(-found.mean().item(), rel=1e-4)
    assert surprise(runner(model, tokenizer), tokenizer, [], []) == ()
    assert likely(math.log(2048) - 0.01, 2048)
    assert not likely(math.log(2048), 2048)
    assert not likely(math.nan, 2048)
