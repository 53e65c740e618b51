"""`python -m caq`."""

from caq.cli import main

if __name__ == "__main__":
    main()
