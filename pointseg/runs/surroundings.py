"""What a process finds around it: streams that may be closed or know few letters, torchrun's variables, and bars of its
own that are still open when something else is to be said."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

from pointseg.volume import ScanError

GONE = (errno.EPIPE, errno.EINVAL, errno.EIO)  # nobody reads a pipe any more, of Windows too; a terminal is closed


class Steady:
    """A standard stream that outlives its reader: what nobody hears is dropped, and the work goes on."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self._or_dropped():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._or_dropped():
            self.stream.flush()

    @contextlib.contextmanager
    def _or_dropped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError, ValueError):  # a stream without a file
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())  # else what is still to be written would fail again at the end
                os.close(nowhere)
            if error.errno not in GONE and self.stream is not sys.__stderr__:  # where nothing can be said any more
                raise ScanError(f"standard output: cannot be written to ({error.strerror}), expected room for what is "
                                "printed; make some, or let it go elsewhere") from None


def steady_streams() -> None:
    """Make this process's standard streams print what they can, whatever they are."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Steady):
            continue
        if stream is None or stream.closed:  # as in a program without a console
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (as long as the process lives)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a scan may be named in any script
        setattr(sys, name, Steady(stream))


def close_bars() -> None:
    """End the lines of progress bars that an error or Ctrl-C has left open."""
    if "tqdm" in sys.modules:
        for bar in list(sys.modules["tqdm"].tqdm._instances):
            bar.close()


def processes_of_torchrun() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(_whole_number("WORLD_SIZE") or 1)


def check_torchrun() -> None:
    """Refuse an environment in which some of torchrun's variables are missing, or do not fit each other."""
    missing = [name for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT") if not _whole_number(name)]
    missing += [] if os.environ.get("MASTER_ADDR") else ["MASTER_ADDR"]
    if missing:
        raise ScanError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}: found no {', '.join(missing)} beside it, expected all "
                        "of torchrun's variables or none; start it with torchrun, or unset WORLD_SIZE")
    for place, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if int(os.environ[place]) >= int(os.environ[size]):  # the others would wait for one that never comes
            raise ScanError(f"{place}={os.environ[place]}: is none of {size}={os.environ[size]} processes, expected "
                            "what torchrun sets; start it with torchrun, or unset WORLD_SIZE")


def _whole_number(name: str) -> str:
    """A variable's text, "" where it is not set or empty."""
    text = os.environ.get(name, "").strip()
    if text and not (text.isdecimal() and text.isascii()):
        raise ScanError(f"{name}={text}: is no whole number, expected what torchrun sets; unset it")
    return text
