"""``python -m mikit``: the command line."""

from mikit.cli import main

if __name__ == "__main__":
    main()
