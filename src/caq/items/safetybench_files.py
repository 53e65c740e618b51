"""SafetyBench's files: from a local directory, `$CAQ_SAFETYBENCH`, or else the hub and its authors' repository.

The hub holds the questions and the solved examples, both of a fixed revision; the answers were published later, in
the authors' repository, and are known here by their hashes. The Chinese answers are the English ones.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.request import urlopen

from huggingface_hub import hf_hub_download, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError

from caq.errors import InvalidInput
from caq.files.cache import cache_root
from caq.files.content import located
from caq.files.lock import turn
from caq.files.whole import write_bytes

DIRECTORY_VARIABLE = "CAQ_SAFETYBENCH"
REPOSITORY = "thu-coai/SafetyBench"
HUB_REVISION = "70538631943dc1517ae9bb0733251809f4445d0e"
ANSWERS_URL = (
    "https://raw.githubusercontent.com/thu-coai/SafetyBench/960833692a1ec82b191ff3e902daca7993c35cc1/opensource_data/"
)
ANSWERS_SHA256 = {
    "test_answers_en.json": "a26ec13deeb551d68f71d61dd269d05dd43c24e6b22d8be3b93788ee10cf8615",
    "test_answers_zh.json": "a26ec13deeb551d68f71d61dd269d05dd43c24e6b22d8be3b93788ee10cf8615",
    "test_answers_zh_subset.json": "41c3e40330a7a96375de54b46df4839f6a46e8c9f6be974a2d31b35b8012af6c",
}
TIMEOUT_SECONDS = 60
WAY_OUT = f"run once with a network, or put SafetyBench's files into a directory and name it in ${DIRECTORY_VARIABLE}"


def find_file(name: str) -> Path:
    """Return the path of one of SafetyBench's files, such as `test_en.json`; the first use downloads it.

    Raises:
        InvalidInput: the file cannot be downloaded.
    """
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if directory:
        return located(directory) / name
    return kept_answers(name) if name in ANSWERS_SHA256 else _from_hub(name)


def _from_hub(name: str) -> Path:
    try:
        return Path(hf_hub_download(REPOSITORY, name, repo_type="dataset", revision=HUB_REVISION))
    except (OSError, HfHubHTTPError) as error:
        raise InvalidInput(f"SafetyBench's {name} cannot be had from the hub ({error}); {WAY_OUT}") from error


def kept_answers(name: str) -> Path:
    """Return the file of answers, which the first use downloads to `$CAQ_CACHE/safetybench`.

    Raises:
        InvalidInput: it cannot be downloaded, or the local copy is no longer what was published.
    """
    kept = cache_root() / "safetybench" / name
    if not kept.exists():
        with turn(kept.parent):
            write_bytes(kept, download_answers(name))
    elif not _is_published(name, kept.read_bytes()):
        raise InvalidInput(f"{kept}: was damaged or changed after it was downloaded; delete it, and {WAY_OUT}")
    return kept


def download_answers(name: str) -> bytes:
    """Return the content of a file of answers.

    Raises:
        InvalidInput: there is no network, or the download is not what was published.
    """
    if is_offline_mode():
        raise InvalidInput(f"SafetyBench's {name} is not kept here, and HF_HUB_OFFLINE is set; {WAY_OUT}")
    try:
        with urlopen(ANSWERS_URL + name, timeout=TIMEOUT_SECONDS) as response:
            content: bytes = response.read()
    except OSError as error:
        raise InvalidInput(f"{ANSWERS_URL}{name}: {error}; {WAY_OUT}") from error
    if not _is_published(name, content):
        raise InvalidInput(f"{ANSWERS_URL}{name}: is not the file that was published; {WAY_OUT}")
    return content


def _is_published(name: str, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == ANSWERS_SHA256[name]
