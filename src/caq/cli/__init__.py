"""The command line: every command imports what it needs when it runs.

So does `main`: whatever stops it, the imports included, is told in words.
"""


def main() -> None:
    """Run the command line; deliberate errors and interruptions are printed without a traceback."""
    try:
        from caq.cli.ending import told
    except KeyboardInterrupt:
        # Nothing is done yet, and nothing to go on with.
        raise SystemExit(130) from None
    with told():
        from caq.cli.app import run

        run()


__all__ = ["main"]
