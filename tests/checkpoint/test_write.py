import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from caq.checkpoint.manifest import HASHES, verify, write_hashes
from caq.checkpoint.write import atomic_directory, require_space
from caq.errors import InvalidInput


def output(target: Path, text: str) -> Path:
    with atomic_directory(target) as directory:
        (directory / "sub").mkdir()
        (directory / "model.safetensors").write_text(text)
        (directory / "sub" / "report.json").write_text(text * 2)
        write_hashes(directory)
    return target


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_directory_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = output(tmp_path / "deep" / "out", "old")
    (target / "stale").write_text("")
    output(target, "new")
    assert (target / "model.safetensors").read_text() == "new"
    assert not (target / "stale").exists()
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


def test_verify_names_what_differs(tmp_path: Path) -> None:
    target = output(tmp_path / "out", "abc")
    assert json.loads((target / HASHES).read_text()).keys() == {"model.safetensors", "sub/report.json"}
    flipped = bytearray((target / "sub" / "report.json").read_bytes())
    flipped[0] ^= 1
    (target / "sub" / "report.json").write_bytes(flipped)
    assert verify(target) == ("sub/report.json",)
    (target / "model.safetensors").unlink()
    assert verify(target) == ("model.safetensors", "sub/report.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not readable"),
        ("{", "not readable"),
        ("[]", "not an object"),
        ('{"../a": ""}', r"'\.\./a', outside"),
        ('{"/etc/passwd": ""}', "'/etc/passwd', outside"),
    ],
)
def test_hashes_that_cannot_be_trusted_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / HASHES).write_text(content)
    with pytest.raises(InvalidInput, match=message):
        verify(tmp_path)
