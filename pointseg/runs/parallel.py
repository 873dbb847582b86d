"""Several processes that train one model: `torchrun` starts them and tells each its rank, `together` joins them.

Training is torch's DistributedDataParallel: each process has an equal part of every batch, and only rank 0 writes.
Batch norm sees the whole batch on GPUs (SyncBatchNorm), on CPUs a process's own part.
"""

import contextlib
import itertools
import os
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pointseg.runs.checkpoint import Checkpoints, check_fits, restore
from pointseg.runs.processes import from_main, rank, take_cores, world_size
from pointseg.runs.surroundings import check_torchrun, processes_of_torchrun
from pointseg.scans.files import first_line
from pointseg.slices import batch_numbers
from pointseg.train import Training, Watch
from pointseg.volume import ScanError

SILENCE = timedelta(hours=1)  # after which a process counts as lost: before a run all wait until its data are hashed
ENDING_S = 15  # which torchrun has to end the others, and to say whose end came first
LOST_SIGNS = ("gloo", "NCCL", "Connection closed", "Connection reset", "connection", "Socket", "Broken pipe")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the processes that torchrun started; nothing where there is one.   Only rank 0 prints.

    A process that has gone ends the others in seconds: torchrun stops them, and says which one it was.
    """
    if processes_of_torchrun() == 1:
        yield
        return
    check_torchrun()
    if gpus := torch.cuda.device_count():
        if int(os.environ["LOCAL_RANK"]) >= gpus:
            raise ScanError(f"--nproc-per-node: found more processes than the {gpus} GPUs of this machine, expected at "
                            "most one for each; start fewer")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=SILENCE)
    except (RuntimeError, ValueError) as error:
        raise ScanError(f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}: the "
                        f"processes cannot meet there ({first_line(error)}), expected a port that is free; start it "
                        "with torchrun, which finds one") from None
    take_cores(int(os.environ["LOCAL_WORLD_SIZE"]), of_torch=False)  # torch's are OMP_NUM_THREADS; of torchrun 1
    try:
        with contextlib.ExitStack() as stack:
            if rank() > 0:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or any(sign in str(error) for sign in LOST_SIGNS)):
            raise
        said = f"another process has gone ({first_line(error)})"
        print(f"rank {rank()} of {world_size()}: {said}, so this one ends too", file=sys.stderr, flush=True)
        time.sleep(ENDING_S)
        raise ScanError(said) from None
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def check_equal_parts(batch: int) -> None:
    """Refuse a batch that the processes cannot share."""
    if batch % world_size():
        raise ScanError(f"--batch: found {batch} slices for {world_size()} processes, expected a multiple of their "
                        "number, so that each has as many; change --batch")


class Together(Checkpoints):
    """`Checkpoints` of a training by all processes that torchrun has started."""

    def take(self, model, scan) -> nn.Module:
        network = super().take(model, scan).to(memory_format=torch.channels_last)  # as `fit` has it: DDP copies strides
        if next(network.parameters()).is_cuda:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        with warnings.catch_warnings():  # of the option's newer name, which torch before 2.13 does not know
            warnings.simplefilter("ignore", FutureWarning)
            return _Wrapped(network, broadcast_buffers=False)  # which a second forward pass would find changed

    def numbers(self, count: int, size: int, seed: int, start: int) -> Iterator[list[int]]:
        """This process's part of each batch.  The last batch of an epoch is completed from the next epoch."""
        part = size // world_size()
        endless = itertools.chain.from_iterable(batch_numbers(count, size, seed))
        batches = (list(itertools.islice(endless, size)) for _ in itertools.count())
        return (batch[rank() * part :][:part] for batch in itertools.islice(batches, start, None))

    def start(self, training: Training) -> None:
        if state := from_main(lambda: self.read(lambda state: check_fits(state, training))):
            restore(training, state)
        if rank() == 0:
            Watch.start(self, training)

    def after_step(self, training: Training) -> None:
        if rank() == 0:
            super().after_step(training)

    def after_round(self, training: Training) -> None:
        rounds = training.history.rounds
        rounds[-1] = from_main(lambda: rounds[-1])  # on which all decide alike how to go on
        if rank() == 0:
            super().after_round(training)

    def end(self) -> None:
        if rank() == 0:
            super().end()


class _Wrapped(DistributedDataParallel):
    """With its network's names, so that a checkpoint does not tell how many processes there were."""

    def state_dict(self, *arguments, **options):
        return self.module.state_dict(*arguments, **options)

    def load_state_dict(self, *arguments, **options):
        return self.module.load_state_dict(*arguments, **options)
