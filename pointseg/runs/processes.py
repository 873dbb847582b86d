"""What one of several processes has to know: which it is, what the first has made, how many cores it may take.

A process that is alone is rank 0 of 1.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

import numba
import torch
import torch.distributed as dist
from tqdm import tqdm

from pointseg.runs.surroundings import close_bars, steady_streams
from pointseg.volume import ScanError

T = TypeVar("T")
SHARED_MEMORY = "the system's shared memory (of Linux /dev/shm; a container has it by --shm-size)"


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def from_main(make: Callable[[], T]) -> T:
    """What rank 0 makes, for all; what it raises, for all too."""
    if world_size() == 1:
        return make()
    made: list = [None]
    if rank() == 0:
        try:
            made = [make()]
        except ScanError as error:
            made = [error]
    dist.broadcast_object_list(made, 0)
    if isinstance(made[0], ScanError):
        raise made[0]
    return made[0]


def side_by_side(work: Callable[[str], None], names: Sequence[str], at_once: int) -> None:
    """Call work(name) for each name, so many at a time, each in a process and with a GPU of its own, where there is
    one.   work can be pickled.  Where one fails the others end what they are at: what is done is kept in files."""
    at_once = min(at_once, len(names))
    context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU
    with room_for_processes("--at-once 1"):
        places = context.SimpleQueue()
        for place in range(at_once):
            places.put(place)
        pool = ProcessPoolExecutor(at_once, context, _begin, (places, at_once))
        working = [pool.submit(partial(_work, work), name) for name in names]  # which starts them
    with pool:
        try:
            for done in as_completed(working):
                done.result()
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        except BrokenProcessPool:
            raise ScanError(f"one of the processes that trained {', '.join(names)} was killed, most likely for lack of "
                            "memory; train fewer models --at-once; started again, the run goes on") from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def room_for_processes(instead: str) -> Iterator[None]:
    """Around the start of other processes: what they share takes room that the system may not have, and Ctrl-C, which
    would reach them while they import, is left to this one.

    instead: the option that does without them.
    """
    try:
        with _deaf_to_interrupts():  # as the processes are from then on
            yield
    except OSError as error:
        raise ScanError(f"other processes cannot be started ({error}), expected room in {SHARED_MEMORY}; make some, or "
                        f"do without them: {instead}") from None


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be set, nor arrive
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(work: Callable[[str], None], name: str) -> None:
    try:
        work(name)
    finally:
        close_bars()  # before the first process says what was wrong


def _begin(places, processes: int) -> None:
    """One of several processes: it takes its share of the cores, a GPU, and does not outlive its parent."""
    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
    steady_streams()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system's, which would be left there at Ctrl-C
    if torch.cuda.is_available():
        torch.cuda.set_device(places.get() % torch.cuda.device_count())
    take_cores(processes)


def take_cores(processes: int, of_torch: bool = True) -> None:
    """This process is one of several on a machine: each takes its share of the cores."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    if of_torch:
        torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
