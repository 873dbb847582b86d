"""`python -m pointseg`, and the command `pointseg`: what has to be settled before anything large is imported."""

import os
import sys


def main() -> int:
    """Run a command.   -> its exit status"""
    os.environ["MPLBACKEND"] = "agg"  # no command opens a window; one that a notebook has set may not be installed here
    with_all_streams()
    try:
        from pointseg.commands.main import main as command

        return command()
    except KeyboardInterrupt:  # while that is imported
        print("pointseg: interrupted", file=sys.stderr)
        return 130


def with_all_streams() -> None:
    """Open the standard streams that are closed: else the next file would have the number of one, and get its text."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


if __name__ == "__main__":
    sys.exit(main())
