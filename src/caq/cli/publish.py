"""`caq verify`, `caq card` and `caq push`: what is done with a checkpoint that CAQ wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caq.errors import refuse


def verify(directory: Annotated[Path, typer.Argument(help="A checkpoint that CAQ wrote.")]) -> None:
    """Check that DIRECTORY holds what was written, unchanged, and nothing else."""
    from caq.checkpoint.manifest import differences

    refuse([f"{directory / name}: {problem}" for name, problem in differences(directory).items()])
    print(f"{directory}: every file is what was written, and no other is there")


def card(
    directory: Annotated[Path, typer.Argument(help="A checkpoint that CAQ wrote.")],
    source: Annotated[Path, typer.Argument(help="A results.json that judges it, or your own Markdown file.")],
) -> None:
    """Write SOURCE into DIRECTORY as its model card, README.md, and update the hashes."""
    from caq.publish.readme import put_card

    put_card(directory, source)
    print(f"wrote {directory / 'README.md'}")


def push(
    directory: Annotated[Path, typer.Argument(help="A checkpoint that CAQ wrote.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; created if it does not exist.")],
    private: Annotated[
        bool, typer.Option("--private", help="Create the repository private, and refuse a public one.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; created if it does not exist.")] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Upload; without it, only list what would be uploaded.")] = False,
) -> None:
    """Upload DIRECTORY to REPO on the Hugging Face hub, after checking that no file of it has changed."""
    from caq.publish.push import files_to_push
    from caq.publish.push import push as send

    if not yes:
        for name in files_to_push(directory):
            print(f"{(directory / name).stat().st_size:>15,}  {name}")
        print(f"nothing was sent; to send this to {repo}, add --yes")
        return
    print(send(directory, repo, private=private, revision=revision, message=message))
