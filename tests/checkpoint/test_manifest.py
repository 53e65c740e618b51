from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from caq.checkpoint.manifest import HASHES, differences, foreign, verify, write_hashes
from caq.errors import InvalidInput
from tests.checkpoint.filled import fill

Change = Callable[[Path], object]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a directory with the names of a checkpoint."""
    (tmp_path / "out").mkdir()
    return fill(tmp_path / "out", "abc")


def edit(directory: Path, **changes: object) -> None:
    """Change entries of the list of hashes; `None` removes one. Names have underscores for dots."""
    hashes = json.loads((directory / HASHES).read_text())
    named = {name.replace("_", "."): value for name, value in changes.items()}
    kept = {name: value for name, value in {**hashes, **named}.items() if value is not None}
    (directory / HASHES).write_text(json.dumps(kept))


def link(directory: Path) -> None:
    (directory.parent / "elsewhere").mkdir()
    (directory / "more").symlink_to(directory.parent / "elsewhere")


def drop(name: str) -> Change:
    def both(directory: Path) -> None:
        (directory / name).unlink()
        edit(directory, **{name.replace(".", "_"): None})

    return both


def flip(name: str) -> Change:
    def flipped(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[0] ^= 1
        (directory / name).write_bytes(content)

    return flipped


def shard(directory: Path) -> None:
    """Turn the weights into shards, of which the list does not name one."""
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model-1.safetensors").write_text("a")
    write_hashes(directory)


def directory_for_file(directory: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "config.json").mkdir()


CHANGES: dict[str, tuple[Change, set[str]]] = {
    "a flipped bit": (flip("sub/report.json"), {"sub/report.json"}),
    "a file that is gone": (lambda path: (path / "model.safetensors").unlink(), {"model.safetensors"}),
    "an entry that is gone": (lambda path: edit(path, config_json=None), {"config.json"}),
    "a file and its entry": (drop("config.json"), {"config.json"}),
    "the record and its entry": (drop("caq.json"), {"caq.json"}),
    "the weights and their entry": (drop("model.safetensors"), {"model.safetensors"}),
    "a shard that no entry names": (shard, {"model-2.safetensors"}),
    "weights that would be loaded first": (
        lambda path: (path / "pytorch_model.bin").write_text(""),
        {"pytorch_model.bin"},
    ),
    "a file in a folder": (lambda path: (path / "sub" / "x.json").write_text(""), {"sub/x.json"}),
    "a link to a folder": (link, {"more"}),
    "a link to nothing": (lambda path: (path / "x").symlink_to("nowhere"), {"x"}),
    "another spelling of a name": (
        lambda path: (path / "config.json").rename(path / "Config.json"),
        {"Config.json", "config.json"},
    ),
    "a directory of a file's name": (directory_for_file, {"config.json"}),
    "an emptied list": (
        lambda path: (path / HASHES).write_text("{}"),
        {"model.safetensors", "sub/report.json", "config.json", "recipe.yaml", "caq.json"},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_not_as_it_was_written_is_named(change: str, checkpoint: Path) -> None:
    assert verify(checkpoint) == ()
    changes, named = CHANGES[change]
    changes(checkpoint)
    assert set(verify(checkpoint)) == named


def test_it_is_said_what_is_wrong(checkpoint: Path) -> None:
    flip("model.safetensors")(checkpoint)
    drop("recipe.yaml")(checkpoint)
    (checkpoint / "notes.txt").write_text("mine")
    assert differences(checkpoint) == {
        "model.safetensors": "is missing or was changed after it was written",
        "notes.txt": f"was put there after the checkpoint was written: {HASHES} does not name it",
        "recipe.yaml": f"is missing, and {HASHES} does not name it, though it is part of every checkpoint",
    }


def test_what_git_and_the_hub_leave_in_a_copy_is_no_difference(checkpoint: Path) -> None:
    for name in (".gitattributes", ".git/config", ".cache/huggingface/download/config.json.metadata"):
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_text("")
    assert verify(checkpoint) == ()
    (checkpoint / ".cache" / "model.safetensors").write_text("")
    assert verify(checkpoint) == (".cache/model.safetensors",)


def test_links_to_the_files_as_the_hubs_cache_has_them_verify(checkpoint: Path, tmp_path: Path) -> None:
    blobs = checkpoint.rename(tmp_path / "blobs")
    (checkpoint / "sub").mkdir(parents=True)
    for name in (*json.loads((blobs / HASHES).read_text()), HASHES):
        (checkpoint / name).symlink_to(blobs / name)
    assert verify(checkpoint) == ()
    flip("config.json")(blobs)
    assert verify(checkpoint) == ("config.json",)


def test_weights_that_changed_are_damage_and_all_else_is_somebodys(checkpoint: Path) -> None:
    flip("model.safetensors")(checkpoint)
    assert foreign(checkpoint) == ()
    flip("recipe.yaml")(checkpoint)
    (checkpoint / ".git").mkdir()
    (checkpoint / ".git" / "config").write_text("")
    assert foreign(checkpoint) == (".git/config", "recipe.yaml")


def test_a_directory_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nosuch: no such directory; give one that CAQ wrote"):
        verify(tmp_path / "nosuch")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not readable"),
        ("{", "not readable"),
        ("[]", "not an object"),
        ('{"a": 1}', "not an object"),
        ('{"../a": ""}', r"'\.\./a', outside"),
        ('{"/etc/passwd": ""}', "'/etc/passwd', outside"),
        ('{"./a": ""}', "'./a', outside"),
        ('{"sub//a": ""}', "'sub//a', outside"),
        ('{"": ""}', "'', outside"),
        ('{"sha256sums.json": ""}', "'sha256sums.json', outside"),
    ],
)
def test_hashes_that_cannot_be_trusted_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / HASHES).write_text(content)
    with pytest.raises(InvalidInput, match=message):
        verify(tmp_path)


def test_a_list_of_many_wrong_names_is_short_to_read(tmp_path: Path) -> None:
    (tmp_path / HASHES).write_text(json.dumps({f"../{number}": "" for number in range(20_000)}))
    with pytest.raises(InvalidInput, match="and 19,995 more") as refused:
        verify(tmp_path)
    assert len(str(refused.value)) < 400
