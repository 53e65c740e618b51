import os
import subprocess
import sys
from pathlib import Path

import pytest

from caq.checkpoint.manifest import verify
from caq.checkpoint.write import atomic_directory, owned, put_text, require_space
from caq.errors import InvalidInput
from tests.checkpoint.filled import fill


def output(target: Path, text: str) -> Path:
    with atomic_directory(target) as directory:
        fill(directory, text)
    return target


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_directory_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = output(tmp_path / "deep" / "out", "old")
    output(target, "new")
    assert (target / "model.safetensors").read_text() == "new"
    assert leftovers(target.parent) == []
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_directory_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nosuch: no such directory; give one that CAQ wrote"):
        verify(tmp_path / "nosuch")


def test_nothing_is_visible_before_the_end(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "out") as directory:
        assert directory.parent == tmp_path
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_directory_whole(tmp_path: Path, error: type[BaseException]) -> None:
    target = output(tmp_path / "out", "old")
    with pytest.raises(error), atomic_directory(target) as directory:
        (directory / "model.safetensors").write_text("half")
        raise error
    assert verify(target) == ()
    assert (target / "model.safetensors").read_text() == "old"
    assert leftovers(tmp_path) == []


def test_a_write_that_runs_out_of_room_leaves_the_old_directory_whole(tmp_path: Path) -> None:
    target = output(tmp_path / "out", "old")
    code = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from safetensors.torch import save_file\n"
        "from caq.checkpoint.write import atomic_directory\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "with atomic_directory(Path(sys.argv[1])) as directory:\n"
        "    (directory / 'config.json').write_text('{}')\n"
        "    save_file({'a': torch.ones(100_000)}, directory / 'model.safetensors')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert verify(target) == ()
    assert (target / "model.safetensors").read_text() == "old"
    assert leftovers(tmp_path) == []


def test_a_process_killed_between_the_two_renames_is_recovered(tmp_path: Path) -> None:
    target = output(tmp_path / "out", "old")
    target.rename(tmp_path / ".out.previous")
    with pytest.raises(RuntimeError), atomic_directory(target):
        raise RuntimeError
    assert verify(target) == ()


def test_a_killed_process_leaves_the_old_directory_whole(tmp_path: Path) -> None:
    target = output(tmp_path / "out", "old")
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from caq.checkpoint.write import atomic_directory\n"
        "with atomic_directory(Path(sys.argv[1])) as directory:\n"
        "    (directory / 'model.safetensors').write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert done.returncode == -9
    assert verify(target) == ()
    assert (output(target, "new") / "model.safetensors").read_text() == "new"


def test_what_others_wrote_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InvalidInput, match="has files that CAQ did not write"):
        output(tmp_path, "new")
    with pytest.raises(InvalidInput, match="is a file"):
        output(tmp_path / "thesis.tex", "new")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert verify(output(tmp_path / "empty", "new")) == ()


def test_space_is_checked_on_the_disk_that_will_hold_the_output(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    require_space(tmp_path / "not" / "there" / "yet", free // 2)
    with pytest.raises(InvalidInput, match=r"needs .* GB and the disk has .* GB free; free some space"):
        require_space(tmp_path / "not" / "there" / "yet", free * 2)


def test_what_comes_while_a_directory_is_written_is_not_deleted(tmp_path: Path) -> None:
    target = output(tmp_path / "out", "old")
    message = r"out: has files that CAQ did not write.*: notes\.txt; move them"
    with pytest.raises(InvalidInput, match=message), atomic_directory(target) as directory:
        fill(directory, "new")
        (target / "notes.txt").write_text("mine")
    assert (target / "notes.txt").read_text() == "mine"
    assert (target / "model.safetensors").read_text() == "old"
    assert leftovers(tmp_path) == []


def test_what_is_named_like_a_replaced_directory_is_not_deleted_either(tmp_path: Path) -> None:
    (tmp_path / ".out.previous").mkdir()
    (tmp_path / ".out.previous" / "notes.txt").write_text("mine")
    with (
        pytest.raises(InvalidInput, match=r"\.out\.previous: has files that CAQ did not write"),
        owned(tmp_path / "out", {}),
    ):
        pass
    assert (tmp_path / ".out.previous" / "notes.txt").read_text() == "mine"


def test_a_card_leaves_the_files_of_others_where_they_are(tmp_path: Path) -> None:
    target = output(tmp_path / "out", "old")
    (target / "notes.txt").write_text("mine")
    (target / "gone").symlink_to("nowhere")
    put_text(target, "README.md", "# A\n")
    assert (target / "notes.txt").read_text() == "mine"
    assert (target / "gone").is_symlink()
    assert (target / "README.md").read_text() == "# A\n"
    assert verify(target) == ("gone", "notes.txt")
