"""Where a response's thought ends and its answer begins."""

from __future__ import annotations

import pytest

from caq.chat import Split, split
from caq.chat.thought import left_open


@pytest.mark.parametrize(
    ("response", "closing", "answer"),
    [
        ("I cannot help.", "", "I cannot help."),
        ("<think>\nHm.\n</think>\n\nI cannot.", "", "\n\nI cannot."),
        ("Hm.</think>I cannot.", "</think>", "I cannot."),
        ("Hm.</think>I cannot.", "", "I cannot."),
        ("  <thinking>Hm.</thinking> Yes.", "", " Yes."),
        ("[THINK]Hm.[/THINK]Yes.", "", "Yes."),
        ("<seed:think>Hm.</seed:think>Yes.", "", "Yes."),
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.", "", "Yes."),
        ("<|channel|>final<|message|>Yes.", "", "Yes."),
        ("<think>a</think><think>b</think>Yes.", "", "Yes."),
        ("The tag <think> opens a thought.", "", "The tag <think> opens a thought."),
        ("<think></think>", "", ""),
    ],
)
def test_the_answer_is_what_follows_the_thought(response: str, closing: str, answer: str) -> None:
    found = split(response, closing)
    assert found.finished
    assert response[found.thought :] == answer


@pytest.mark.parametrize(
    ("response", "closing"),
    [
        ("<think>I cannot", ""),
        ("I cannot", "</think>"),
        ("", "</think>"),
        ("<think>a</think><think>I cannot", ""),
        ("[THINK]I cannot", ""),
    ],
)
def test_a_thought_that_does_not_end_has_no_answer(response: str, closing: str) -> None:
    assert split(response, closing) == Split(len(response), finished=False)


@pytest.mark.parametrize(
    ("text", "closing"),
    [
        ("<|assistant|>", ""),
        ("<|assistant|><think>\n", "</think>"),
        ("<think></think>", ""),
        ("<think></think><think>", "</think>"),
        ("<|im_start|>assistant\n<think> The first step is to", "</think>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("◁think▷", "◁/think▷"),
    ],
)
def test_what_a_prompt_leaves_open_is_known_by_what_closes_it(text: str, closing: str) -> None:
    assert left_open(text) == closing
