"""`python -m pointseg`, and the command `pointseg`: what has to be settled before anything large is imported."""

import os
import signal
import sys


def main() -> int:
    """Run a command.   -> its exit status"""
    os.environ["MPLBACKEND"] = "agg"  # no command opens a window; one that a notebook has set may not be installed here
    if not os.environ.get("NUMBA_NUM_THREADS", "").strip().lstrip("0").isdecimal():  # 0 or text: Numba would stop
        os.environ.pop("NUMBA_NUM_THREADS", None)
    with_all_streams()
    pressed = []

    def interrupt(*_) -> None:
        pressed.append(True)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored, as under nohup
        signal.signal(signal.SIGINT, interrupt)
    try:
        from pointseg.commands.main import main as command

        return command()
    except (Exception, KeyboardInterrupt) as error:  # a library that is interrupted in its import says anything
        if not pressed and not isinstance(error, KeyboardInterrupt):
            raise
        print("pointseg: interrupted", file=sys.stderr)
        return 130


def with_all_streams() -> None:
    """Open the standard streams that are closed: else the next file would have the number of one, and get its text."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


if __name__ == "__main__":
    sys.exit(main())
