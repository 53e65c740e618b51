"""What a runner answers to questions and prompts: written once, above its likelihoods and its greedy responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from transformers import PreTrainedTokenizerBase

from caq.chat import ChatOptions, manner_of, render_prompt, split
from caq.items.extraction import extract_letter
from caq.items.protocols import OPTION_TEXT, PROTOCOLS, Protocol, best_options
from caq.items.question_prompts import ZERO_SHOT, PromptFormat, prompts
from caq.items.questions import LETTERS, Question
from caq.items.safety import ANSWER_TOKENS, GENERATE, SafetyInputs
from caq.measure.coherence import readable
from caq.measure.judges.phrases import refuses
from caq.measure.record import Failure
from caq.runners.base import Choice, Response, Runner


@dataclass(frozen=True)
class Answer:
    """What a model chose.

    Attributes:
        chosen: the option's index; None where it chose none. A written answer may name a letter that is no option.
        failure: why there is no choice: the response is a refusal, incoherent or still a thought, or no option can be
            read out of it.
        response: what the model wrote, under `generate`.
    """

    chosen: int | None
    failure: Failure | None = None
    response: str | None = None


def answer(
    runner: Runner, tokenizer: PreTrainedTokenizerBase, inputs: SafetyInputs, protocols: Sequence[str]
) -> dict[str, tuple[Answer, ...]]:
    """Return the answers to safety questions under each of `caq.items.safety.all_protocols` that is named.

    Protocols by likelihood share one pass; the tokenizer lends its chat template.

    Raises:
        InvalidInput: a question longer than the model's context, or logits that are not numbers.
    """
    answers: dict[str, tuple[Answer, ...]] = {}
    # First, for it needs the most room: what does not fit is told before anything is computed.
    if GENERATE in protocols:
        asked = prompts(inputs.questions, inputs.form, tokenizer)
        written = runner.greedy(asked, ANSWER_TOKENS, add_special_tokens=not inputs.form.chat)
        closing = manner_of(tokenizer, inputs.form.options).closing if inputs.form.chat else ""
        replies = (read_reply(tokenizer, response, closing) for response in written)
        answers[GENERATE] = tuple(
            read_response(question, reply.text) if reply.finished else Answer(None, "unfinished", reply.thought)
            for question, reply in zip(inputs.questions, replies, strict=True)
        )
    likely = {name: PROTOCOLS[name] for name in protocols if name in PROTOCOLS}
    chosen = choose(runner, tokenizer, inputs.questions, likely, inputs.form) if likely else {}
    answers |= {name: tuple(map(Answer, indices)) for name, indices in chosen.items()}
    return {name: answers[name] for name in protocols}


def choose(
    runner: Runner,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    protocols: Mapping[str, Protocol],
    form: PromptFormat = ZERO_SHOT,
) -> dict[str, tuple[int, ...]]:
    """Return for every protocol the index of the option chosen for each question.

    Protocols with the same continuations share their likelihoods.

    Raises:
        InvalidInput: as `answer`.
    """
    kinds = list(dict.fromkeys(protocol.continuations for protocol in protocols.values()))
    choices = [
        Choice(prompt, tuple(chain.from_iterable(kind(question) for kind in kinds)))
        for prompt, question in zip(prompts(questions, form, tokenizer), questions, strict=True)
    ]
    scored = map(iter, runner.scores(choices, add_special_tokens=not form.chat))
    chosen = [
        best_options(protocols, question, {kind: list(islice(row, len(question.options))) for kind in kinds})
        for row, question in zip(scored, questions, strict=True)
    ]
    return {name: tuple(options[name] for options in chosen) for name in protocols}


def choose_facts(runner: Runner, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]) -> tuple[int, ...]:
    """Return the option chosen for each factual question, by the protocol of the paper's tables."""
    return choose(runner, tokenizer, questions, {OPTION_TEXT: PROTOCOLS[OPTION_TEXT]})[OPTION_TEXT]


@dataclass(frozen=True)
class Reply:
    """A response in its two parts.

    Attributes:
        text: the answer; empty while the thought before it is not finished.
        thought: as it is spelled, up to what closes it; empty if there is none.
        tokens: of both.
        ended: whether it ended by itself, not at the limit.
    """

    text: str
    thought: str
    finished: bool
    tokens: tuple[int, ...]
    ended: bool


def respond(
    runner: Runner,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_new_tokens: int,
    options: ChatOptions | None = None,
) -> tuple[Reply, ...]:
    """Return a greedy response to each prompt, which is a user's turn; `options` are what the template is given.

    Raises:
        InvalidInput: the tokenizer has no chat template.
    """
    closing = manner_of(tokenizer, options or {}).closing
    written = runner.greedy([render_prompt(tokenizer, text, options or {}) for text in texts], max_new_tokens)
    return tuple(read_reply(tokenizer, response, closing) for response in written)


def read_reply(tokenizer: PreTrainedTokenizerBase, response: Response, closing: str) -> Reply:
    """Tell a response's thought from its answer; `closing` ends the thought that the prompt opens, if it opens one."""
    found = split(response.spelled, closing)
    if not found.thought:
        return Reply(response.text, "", found.finished, response.tokens, response.ended)
    thought, text = response.spelled[: found.thought], response.spelled[found.thought :]
    # Most that are special have no name of their own, as what ends a turn, which need not be the end of a text.
    unnamed = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    for token in (*tokenizer.all_special_tokens, *unnamed):
        text = text.replace(token, "")
    return Reply(text, thought, found.finished, response.tokens, response.ended)


def read_response(question: Question, response: str) -> Answer:
    """Read the option out of a written answer; where the rules find none, say why.

    An answer that names an option is short and odd; only where none is found does it matter whether it is coherent.
    """
    letter = extract_letter(response, question.options)
    if letter is not None:
        return Answer(LETTERS.index(letter), response=response)
    if refuses(response):
        return Answer(None, "refused", response)
    return Answer(None, "unparsed" if readable(response) else "incoherent", response)
