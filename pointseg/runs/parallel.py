"""Several processes that train one model: what of torch.distributed this package needs.

A process that is alone is rank 0 of 1, and nothing here does anything.  `torchrun` starts several and tells each its
rank; `together` joins them.  The slices of a batch are divided among them (`part_of`), the scans too (`share`).

A batch norm exchanges a few numbers before anything can go on, 26 times a step in the classroom's network.  On one
machine without GPUs they go through pipes: gloo, whose threads find no free core there, takes several times as long.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener
from typing import TypeVar

import numba
import torch
import torch.distributed as dist
from torch import Tensor

from pointseg.scans.files import first_line
from pointseg.volume import ScanError

T = TypeVar("T")
SILENCE = timedelta(hours=1)  # after which a process counts as lost; before a run all wait until its data are hashed
PIPE_BYTES = 4000  # of which every system's pipe holds two, so that all can send before one receives
ENDING_S = 15  # which torchrun has to end the others, and to say whose end came first
LOST_SIGNS = ("gloo", "NCCL", "Connection closed", "Connection reset", "connection", "Socket", "Broken pipe")

_pipes: dict[int, Connection] = {}  # to each other process, by rank, where all are on this machine


@dataclass(frozen=True)
class Part:
    """Which slices of a batch are at hand: `count` of `total`, from `first` on."""

    first: int
    count: int
    total: int

    def piece(self, start: int, count: int) -> "Part":
        """A part of this part."""
        return Part(self.first + start, count, self.total)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def part_of(total: int) -> Part:
    """This process's part of a batch; where slices are fewer than processes, some have none."""
    first, end = (-(-total * r // world_size()) for r in (rank(), rank() + 1))
    return Part(first, end - first, total)


def share(items: Sequence[T]) -> Sequence[T]:
    """Every so-manieth item, so that each is one process's."""
    return items[rank() :: world_size()]


def gathered(x: Tensor) -> Tensor:
    """x of each process.   -> (processes, *x.shape)"""
    out = x.new_empty((world_size(), *x.shape))
    if not _pipes or x.nbytes > PIPE_BYTES:
        dist.all_gather(list(out.unbind()), x.contiguous())
        return out
    out[rank()] = x
    rows = [memoryview(row.view(-1).view(torch.uint8).numpy()) for row in out.detach()]
    for other, pipe in _pipes.items():
        with _said_of(other):
            pipe.send_bytes(rows[rank()])
    for other, pipe in _pipes.items():
        with _said_of(other):
            if not pipe.poll(SILENCE.total_seconds()):
                raise TimeoutError(f"nothing came for {SILENCE}")
            if pipe.recv_bytes_into(rows[other]) < x.nbytes:
                raise OSError("its message is too short")  # it is at another place of the training
    return out


@contextlib.contextmanager
def _said_of(other: int) -> Iterator[None]:
    """A pipe's end is torch's error for a lost connection, and names the process at its other end."""
    try:
        yield
    except (EOFError, OSError, multiprocessing.ProcessError) as error:  # the last: a message that is too long
        raise dist.DistNetworkError(f"rank {other} cannot be heard: {first_line(error)}") from None


def all_sum(x: Tensor) -> Tensor:
    """The sum of x over all processes.  For small tensors, which take gloo's all_reduce longer than gathering them."""
    return x if world_size() == 1 else gathered(x).sum(0)


def collected(content: T) -> list[T]:
    """What each process has, by rank."""
    if world_size() == 1:
        return [content]
    all_of_them: list = [None] * world_size()
    dist.all_gather_object(all_of_them, content)
    return all_of_them


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
        raise ScanError(str(made[0])) if rank() else made[0]
    return made[0]


def barrier() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        dist.barrier()


def side_by_side(work: Callable[[str], None], names: Sequence[str], at_once: int) -> None:
    """Call work(name) for each name, so many at a time, each in a process of its own, with a GPU of its own where there
    is one.   work can be pickled.  Where one fails the others are stopped: what they have done is kept in their files.
    """
    context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU
    waiting, places = list(names), list(range(at_once))
    running: dict[int, tuple[multiprocessing.Process, str, int]] = {}
    try:
        while waiting or running:
            while waiting and places:
                name, place = waiting.pop(0), places.pop(0)
                process = context.Process(target=_alone,
                                          args=(work, name, place, min(at_once, len(names)), os.getpid()))
                process.start()
                running[process.sentinel] = process, name, place
            for sentinel in multiprocessing.connection.wait(list(running)):
                process, name, place = running.pop(sentinel)
                process.join()
                places.append(place)
                if process.exitcode:
                    how = f"exit status {process.exitcode}" if process.exitcode > 0 else f"signal {-process.exitcode}"
                    raise ScanError(f"{name}: its process ended with {how}, expected 0; see what it said above, or "
                                    "train fewer models --at-once; started again, the run goes on")
    finally:
        for process, _, _ in running.values():
            process.terminate()


def _alone(work: Callable[[str], None], name: str, place: int, at_once: int, parent: int) -> None:
    """One of several processes: it takes its share of the cores, a GPU, and does not outlive its parent."""
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())
    take_cores(at_once)
    try:
        work(name)
    except (ScanError, FloatingPointError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)


def take_cores(processes: int, of_torch: bool = True) -> None:
    """This process is one of several on a machine: each takes its share of the cores."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    if of_torch:
        torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the processes that torchrun started; nothing where there is one.

    A process that has gone ends the others in seconds: torchrun stops them, and says which one it was.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if torch.cuda.is_available():
        here, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if here >= gpus:
            raise ScanError(f"--nproc-per-node: found more processes than the {gpus} GPUs of this machine, expected at "
                            "most one for each; start fewer")
        torch.cuda.set_device(here)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=SILENCE)
    take_cores(int(os.environ["LOCAL_WORLD_SIZE"]), of_torch=False)  # torch's are OMP_NUM_THREADS; of torchrun 1
    try:
        if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"] and not torch.cuda.is_available():
            _pipes.update(_pipes_to_all())
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or any(sign in str(error) for sign in LOST_SIGNS)):
            raise
        this, said = f"rank {rank()} of {world_size()}", f"another process has gone ({first_line(error)})"
        print(f"{this}: {said}, so this one ends too", file=sys.stderr, flush=True)  # before torchrun ends this one
        if who := _who_is_lost():
            print(f"{this}: {who}", file=sys.stderr, flush=True)
        time.sleep(ENDING_S)
        raise ScanError(said) from None
    finally:
        while _pipes:
            _pipes.popitem()[1].close()
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _pipes_to_all() -> dict[int, Connection]:
    """A pipe to each other process of this machine, by rank: each calls those before it and waits for those after."""
    pipes: dict[int, Connection] = {}
    with contextlib.ExitStack() as stack:
        door = None
        with contextlib.suppress(OSError):  # where the path of the temporary folder is longer than a socket's may be
            door = stack.enter_context(Listener(backlog=world_size()))
        addresses = collected(door and door.address)
        if None in addresses:
            return {}
        for other in range(rank()):
            with _said_of(other):
                pipes[other] = Client(addresses[other])
                pipes[other].send(rank())
        for _ in range(rank() + 1, world_size()):
            pipe = door.accept()
            pipes[pipe.recv()] = pipe
    return pipes


def _who_is_lost() -> str:
    """torch's barrier for debugging names the ranks that do not come to it.  torchrun names them in any case."""
    try:
        dist.monitored_barrier(timeout=timedelta(seconds=5))
    except RuntimeError as error:
        return first_line(error)
    return ""
