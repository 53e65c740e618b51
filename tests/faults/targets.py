"""Every file that caq reads, how it is changed, and the command that reads it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.stage import COMPARE, FAST, MEASURE, REDRAW, SELF, WHOLE

NEW = f"{FAST} -o new"
_EVALUATE = f"evaluate pair/aligned {MEASURE}"
_LOADED = f"evaluate out --perplexity-text heldout.txt --window 32 {MEASURE}"
_BOTH = f"quantize pair/aligned --base pair/base {FAST.partition('pair/aligned')[2].replace('kl-top', 'cal')} -o new"
#: A recipe is read whole before it is overridden; one that asks for a thousand steps is no fault, and takes its time.
_RECIPE = (
    "quantize pair/aligned -o new --cache cache --device cpu --quiet --set learn=[] --set data.samples=2 "
    "--set data.length=16 --set quantizer.clip_steps=4 --recipe"
)
_AGAIN = f"{WHOLE} -o out"
_PUSH, _VERIFY = "push out someone/something", "verify out"


@dataclass(frozen=True)
class Target:
    """A file of the stage.

    Attributes:
        pattern: its path, or several, of which the mutation takes one.
        kind: of `KINDS`.
        command: reads it.
    """

    pattern: str
    kind: str
    command: str


TARGETS = (
    # What the hub or a training leaves: a model, as it is quantized, as it is measured, and as a base.
    Target("pair/aligned/config.json", "json", NEW),
    Target("pair/aligned/config.json", "json", f"{_EVALUATE} --facts facts.jsonl"),
    Target("pair/aligned/tokenizer.json", "json", NEW),
    Target("pair/aligned/tokenizer.json", "json", f"{_EVALUATE} --prompts prompts.jsonl"),
    Target("pair/aligned/tokenizer_config.json", "json", NEW),
    Target("pair/aligned/tokenizer_config.json", "json", f"{_EVALUATE} --prompts prompts.jsonl"),
    Target("pair/aligned/special_tokens_map.json", "json", NEW),
    Target("pair/aligned/generation_config.json", "json", f"{_EVALUATE} --prompts prompts.jsonl"),
    Target("pair/aligned/generation_config.json", "json", f"{SELF.replace('--cache cache', '--cache other')} -o new"),
    Target("pair/aligned/chat_template.jinja", "template", f"{_EVALUATE} --prompts prompts.jsonl"),
    Target("pair/aligned/chat_template.jinja", "template", f"{FAST.replace('text.txt', 'chats.jsonl')} -o new"),
    Target("pair/aligned/model.safetensors.index.json", "json", NEW),
    Target("pair/aligned/model-*.safetensors", "tensors", NEW),
    Target("pair/aligned/model-*.safetensors", "tensors", f"{_EVALUATE} --facts facts.jsonl"),
    Target("pair/base/config.json", "json", _BOTH),
    Target("pair/base/tokenizer*.json", "json", _BOTH),
    Target("pair/base/model*.json", "json", _BOTH),
    Target("pair/base/model-*.safetensors", "tensors", _BOTH),
    # What a user writes.
    Target("recipe.yaml", "yaml", f"{_RECIPE} recipe.yaml"),
    Target("recipe.yaml", "yaml", "quantize nothing --recipe recipe.yaml -o new"),
    Target("text.txt", "text", NEW),
    Target("chats.jsonl", "lines", f"{FAST.replace('text.txt', 'chats.jsonl')} -o new"),
    Target("texts.parquet", "bytes", f"{FAST.replace('text.txt', 'texts.parquet')} -o new"),
    Target("openers.txt", "text", f"{SELF} -o new"),
    Target("heldout.txt", "text", f"{_EVALUATE} --perplexity-text heldout.txt --window 32"),
    Target("safety.json", "json", f"{_EVALUATE} --safety safety.json --safety-answers answers.json"),
    Target("answers.json", "json", f"{_EVALUATE} --safety safety.json --safety-answers answers.json"),
    Target("safety.jsonl", "lines", f"{_EVALUATE} --safety safety.jsonl"),
    Target("dev.json", "json", f"{_EVALUATE} --safety safety.jsonl --protocol letter --shots 5 --dev dev.json"),
    Target("facts.jsonl", "lines", f"{_EVALUATE} --facts facts.jsonl"),
    Target("prompts.jsonl", "lines", f"{_EVALUATE} --prompts prompts.jsonl"),
    Target("xstest.csv", "csv", f"{_EVALUATE} --prompts xstest.csv"),
    Target("harmbench.csv", "csv", f"{_EVALUATE} --prompts harmbench.csv"),
    # What caq wrote: checkpoints,
    Target("out/config.json", "json", _LOADED),
    Target("out/online.json", "json", _LOADED),
    Target("out/model*.safetensors", "tensors", _LOADED),
    Target("out/sha256sums.json", "json", _VERIFY),
    Target("out/sha256sums.json", "json", "card out report/results.json"),
    Target("out/sha256sums.json", "json", _AGAIN),
    Target("out/caq.json", "json", "card out report/results.json"),
    Target("out/caq.json", "json", _AGAIN),
    Target("out/caq.json", "json", f"{_LOADED} --reference pair/aligned"),
    Target("out/recipe.yaml", "yaml", f"{_RECIPE} out/recipe.yaml"),
    Target("out/*", "bytes", _PUSH),
    # reports and the answers behind them,
    Target("report/results.json", "json", f"{REDRAW} --baseline report/results.json"),
    Target("report/results.json", "json", "card out report/results.json"),
    Target("report/results.json", "json", f"{_EVALUATE} --reference pair/aligned --facts facts.jsonl -o report"),
    Target("report/comparison.json", "json", REDRAW),
    Target("report/comparison.json", "json", COMPARE),
    Target("report/items.jsonl", "lines", REDRAW),
    Target("report/arms/*/*.json", "json", REDRAW),
    Target("report/arms/*/*.jsonl", "lines", REDRAW),
    Target("report/arms/*/*.json", "json", COMPARE),
    Target("report/arms/*/*.jsonl", "lines", COMPARE),
    Target("report/arms/*/states/*.json", "json", COMPARE.replace("pair/base", "out")),
    Target("report/arms/*/states/*.bin", "bytes", COMPARE.replace("pair/base", "out")),
    Target("report/arms/*/states/*.safetensors", "tensors", COMPARE.replace("pair/base", "out")),
    # and what a run keeps for the next.
    Target(".half.work/run.json", "json", f"{WHOLE} -o half"),
    Target(".half.work/*.safetensors", "tensors", f"{WHOLE} -o half"),
    Target("cache/teachers/*/*.safetensors", "tensors", f"{WHOLE} -o new"),
    Target("cache/responses/*/*.json", "json", f"{SELF} -o new"),
)  # fmt: skip
