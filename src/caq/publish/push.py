"""`caq push`: a checkpoint to the hub, checked here before the upload and there after it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from glob import escape
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile

from caq.checkpoint.inspect import inspect
from caq.checkpoint.manifest import HASHES, differences, read_hashes
from caq.errors import CaqError, InvalidInput, attempt, refuse
from caq.files.whole import sha256_of

CARD = "README.md"
#: Files that run code when they are read.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".gguf", *PICKLES)


class PushFailed(CaqError):
    """The hub refused or could not be reached."""


def files_to_push(directory: Path) -> tuple[str, ...]:
    """Return the relative paths of what `push` uploads; reads and hashes every file.

    Raises:
        InvalidInput: every problem: files that changed, are missing, are no part of what was written, or are pickles; a
            checkpoint that is not whole; no model card.
    """
    wrong, names = differences(directory), {*read_hashes(directory), HASHES}
    pickles = {name for name in {*wrong, *names} if name.lower().endswith(PICKLES)}
    problems = [
        f"{directory / name}: is a pickle, which runs code when it is read; remove it, or store it as safetensors"
        for name in sorted(pickles)
    ]
    problems += [
        f"{directory / name}: {problem}; {_way_out(directory, name, name in names)}"
        for name, problem in wrong.items()
        if name not in pickles
    ]
    if CARD not in names:
        problems.append(
            f"{directory}: has no model card ({CARD}); compare it with the full-precision model by `caq compare`, then "
            f"`caq card {directory} RESULTS.json`; or quantize with --evaluate"
        )
    attempt(problems, partial(inspect, directory, allow_quantized=True))
    refuse(problems)
    return tuple(sorted(names))


def push(
    directory: Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a checkpoint that CAQ wrote, by the token of `hf auth login` or `HF_TOKEN`; return its commit's address.

    Args:
        repo: `owner/name`; created if it does not exist.
        private: create it private; a public one is rejected.
        revision: a branch, created if it does not exist; None is the main one.
        endpoint: of another hub than `HF_ENDPOINT`'s.

    Raises:
        InvalidInput: as `files_to_push`; no token, the network forbidden, or a repository that is not as asked.
        PushFailed: the hub refused, could not be reached, or holds something else afterwards.
    """
    files = files_to_push(directory)
    api = HfApi(endpoint=endpoint, token=_token())
    with _explained(repo, api.endpoint):
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise InvalidInput(f"{repo}: exists and is public; make it private on the hub, or choose another name")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        _refuse_other_weights(api, repo, revision, files)
        said = message or f"Upload {directory.resolve().name}, quantized by CAQ"
        # By name: what git and the hub's library keep in a copy is no part of it.
        chosen = [escape(name) for name in files]
        commit = api.upload_folder(
            repo_id=repo, folder_path=directory, revision=revision, commit_message=said, allow_patterns=chosen
        )
        _check_arrived(api, repo, commit.oid, directory, files)
    return str(commit.commit_url)


def _way_out(directory: Path, name: str, named: bool) -> str:
    if name == CARD:
        return f"put your own card in by `caq card {directory} FILE`"
    return "write the checkpoint again" if named else "move it elsewhere, so that nothing goes to the hub unseen"


def _token() -> str:
    if constants.HF_HUB_OFFLINE:
        raise InvalidInput("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and a push needs the network; unset it")
    token = get_token()
    if not token:
        raise InvalidInput("no token for the hub: log in by `hf auth login`, or set HF_TOKEN to one that may write")
    return token


@contextmanager
def _explained(repo: str, endpoint: str) -> Iterator[None]:
    """Turn what the hub's library raises into sentences with a way out."""
    ways_out = {
        401: "the token is not valid; log in again by `hf auth login`, or set HF_TOKEN",
        403: "the token may not write there; give it the right on the hub (Settings, Access Tokens), or choose a "
        "repository of your own",
        404: "no such repository or revision, or the token may not see it",
    }
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = ways_out.get(status, error.server_message or str(error).strip().splitlines()[0])
        raise PushFailed(f"{repo}: the hub answers {status}: {reason}") from error
    except (httpx2.HTTPError, OfflineModeIsEnabled) as error:
        reason = str(error) or type(error).__name__
        raise PushFailed(
            f"{repo}: {endpoint} cannot be reached ({reason}); what has arrived is not sent again"
        ) from error
    except (ValueError, RuntimeError) as error:
        # A name that is none, metadata that the hub refuses, a file whose upload failed.
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise PushFailed(f"{repo}: {error}{cause}") from error


def _refuse_other_weights(api: HfApi, repo: str, revision: str | None, files: Sequence[str]) -> None:
    """Refuse a repository whose other weights Transformers might load in the place of these."""
    others = [path for path in _files(api, repo, revision) if path.endswith(_WEIGHTS) and path not in files]
    if others:
        raise InvalidInput(
            [
                f"{repo}: holds {path}, which is no part of this checkpoint and may be loaded in its place; "
                "delete it there, or choose another repository or --revision"
                for path in others
            ]
        )


def _check_arrived(api: HfApi, repo: str, commit: str, directory: Path, files: Sequence[str]) -> None:
    arrived = _files(api, repo, commit)
    differing = [name for name in files if name not in arrived or not _same(arrived[name], directory / name)]
    if differing:
        raise PushFailed(
            f"{repo}: after the upload the hub lacks or holds otherwise: {', '.join(differing)}; push again"
        )


def _files(api: HfApi, repo: str, revision: str | None) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _same(there: RepoFile, here: Path) -> bool:
    """Compare by the hash that the hub keeps: sha256 of large files, git's of the others."""
    if there.lfs is not None:
        return bool(there.lfs.sha256 == sha256_of(here))
    content = here.read_bytes()
    return bool(there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())
