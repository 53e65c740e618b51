from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from caq.checkpoint.manifest import HASHES, read_hashes, verify, write_hashes
from caq.checkpoint.write import put_text
from caq.errors import InvalidInput
from caq.publish.push import PushFailed, files_to_push, push
from tests.publish.hub import Hub, Repo, serve

REPO = "someone/model-w4a4"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Return a running hub; the library is online, without xet, and logged in to it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with serve() as running:
        yield running


@pytest.fixture
def ready(checkpoint: Path) -> Path:
    """Return a checkpoint with a card."""
    put_text(checkpoint, "README.md", "---\nlicense: mit\n---\n# A model\n")
    return checkpoint


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_every_file_arrives_with_its_exact_bytes(hub: Hub, ready: Path) -> None:
    url = push(ready, REPO, endpoint=hub.url)
    assert hub.repos[REPO].branches["main"] == contents(ready)
    assert len(contents(ready)) == len(read_hashes(ready)) + 1
    assert any(name.endswith(".safetensors") for name in contents(ready))
    assert url.startswith(f"{hub.url}/{REPO}/commit/")
    assert not hub.repos[REPO].private
    assert hub.repos[REPO].messages == ["Upload checkpoint, quantized by CAQ"]
    push(ready, REPO, endpoint=hub.url)  # again: nothing is in the way
    assert hub.repos[REPO].branches["main"] == contents(ready)


def test_what_the_hub_gives_back_verifies(hub: Hub, ready: Path, tmp_path: Path) -> None:
    push(ready, REPO, endpoint=hub.url)
    (tmp_path / "downloaded").mkdir()
    for name, content in hub.repos[REPO].branches["main"].items():
        (tmp_path / "downloaded" / name).write_bytes(content)
    assert verify(tmp_path / "downloaded") == ()


def test_a_private_push_to_a_branch_is_private_and_on_that_branch(hub: Hub, ready: Path) -> None:
    push(ready, REPO, private=True, revision="w4a4", message="First", endpoint=hub.url)
    repo = hub.repos[REPO]
    assert repo.private
    assert repo.messages == ["First"]
    assert repo.branches == {"main": {}, "w4a4": contents(ready)}


def test_a_public_repository_is_not_taken_for_a_private_one(hub: Hub, ready: Path) -> None:
    hub.repos[REPO] = Repo(private=False)
    with pytest.raises(InvalidInput, match="exists and is public"):
        push(ready, REPO, private=True, endpoint=hub.url)
    assert hub.repos[REPO].branches["main"] == {}


def test_weights_that_could_be_loaded_instead_stop_the_push(hub: Hub, ready: Path) -> None:
    hub.repos[REPO] = Repo(False, {"main": {"model.safetensors": b"old", "notes.txt": b"kept"}})
    with pytest.raises(InvalidInput, match=r"holds model\.safetensors, which is no part of this checkpoint") as refused:
        push(ready, REPO, endpoint=hub.url)
    assert len(refused.value.problems) == 1
    del hub.repos[REPO].branches["main"]["model.safetensors"]
    push(ready, REPO, endpoint=hub.url)
    assert hub.repos[REPO].branches["main"] == {**contents(ready), "notes.txt": b"kept"}


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00003.safetensors"])
def test_what_the_hub_holds_otherwise_is_found(name: str, hub: Hub, ready: Path) -> None:
    hub.spoil = name
    with pytest.raises(PushFailed, match=f"holds otherwise: {name}"):
        push(ready, REPO, endpoint=hub.url)


@pytest.mark.parametrize(
    ("token", "reason"), [("hf_unknown", "401: the token is not valid"), ("hf_reader", "403: the token may not")]
)
def test_a_token_that_may_not_write_is_explained(
    token: str, reason: str, hub: Hub, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PushFailed, match=reason):
        push(ready, REPO, endpoint=hub.url)
    assert not hub.repos


def test_without_a_token_or_a_network_nothing_is_asked_of_the_hub(
    hub: Hub, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with pytest.raises(InvalidInput, match="hf auth login"):
        push(ready, REPO, endpoint=hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidInput, match="HF_HUB_OFFLINE"):
        push(ready, REPO, endpoint=hub.url)
    assert hub.requests == []


def test_a_hub_that_is_not_there_and_a_name_that_is_none_are_explained(hub: Hub, ready: Path) -> None:
    with pytest.raises(PushFailed, match="cannot be reached"):
        push(ready, REPO, endpoint="http://127.0.0.1:9")
    with pytest.raises(PushFailed, match="not a name"):
        push(ready, "not a name", endpoint=hub.url)
    hub.repos[REPO] = Repo(False, {})
    with pytest.raises(PushFailed, match="404: no such repository or revision"):
        push(ready, REPO, endpoint=hub.url)


def test_all_that_keeps_a_checkpoint_from_the_hub_is_said_at_once(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / ".env").write_text("SECRET=1")
    (checkpoint / "optimizer.pt").write_bytes(b"\x80\x02.")
    with pytest.raises(InvalidInput) as refused:
        files_to_push(checkpoint)
    said = "\n".join(refused.value.problems)
    assert "config.json: is missing or was changed" in said
    assert "optimizer.pt: is a pickle" in said
    assert ".env: was put there after" in said
    assert "has no model card (README.md)" in said
    assert said.count("optimizer.pt") == 1


def test_a_pickle_that_was_written_with_the_checkpoint_is_refused_too(ready: Path) -> None:
    (ready / "state.pkl").write_bytes(b"\x80\x02.")
    write_hashes(ready)
    with pytest.raises(InvalidInput, match=r"state\.pkl: is a pickle"):
        files_to_push(ready)


def test_a_checkpoint_that_is_not_whole_is_refused_though_its_hashes_are_right(ready: Path) -> None:
    (ready / "model-00002-of-00003.safetensors").write_bytes(b"short")
    write_hashes(ready)
    with pytest.raises(InvalidInput, match=r"model-00002-of-00003\.safetensors"):
        files_to_push(ready)


def test_a_card_that_was_edited_in_place_says_how_to_put_it_in(ready: Path) -> None:
    (ready / "README.md").write_text("# Mine\n")
    with pytest.raises(InvalidInput, match="put your own card in by `caq card"):
        files_to_push(ready)


def test_the_command_sends_only_when_it_is_told_to(ready: Path, hub: Hub) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", "from caq.cli import main; main()", "push", str(ready), REPO]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], env=environment, capture_output=True, text=True)

    told = run()
    assert told.returncode == 0
    assert "nothing was sent" in told.stdout
    assert all(name in told.stdout for name in (*read_hashes(ready), HASHES))
    assert hub.requests == []
    sent = run("--yes", "--private")
    assert sent.returncode == 0, sent.stderr
    assert f"{hub.url}/{REPO}/commit/" in sent.stdout
    assert hub.repos[REPO].branches["main"] == contents(ready)
    (ready / "config.json").unlink()
    refused = run("--yes")
    assert refused.returncode == 2
    assert "error: " in refused.stderr
    assert "Traceback" not in refused.stderr
