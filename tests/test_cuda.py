"""What only a GPU can show.  Skipped without one; `test_train` runs the same step on torch's `meta` device."""

import numpy as np
import pytest
import torch
from tiny import TERMS, schedule_of, tiny_dataset, tiny_network, tiny_scan

from pointseg.losses import Move, point_term
from pointseg.network import autocast
from pointseg.predict import predict_labels, validation_score
from pointseg.train import endless_batches, fit, training_step
from pointseg.volume import ScanError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is here")
GPU = torch.device("cuda")


def batch_on_gpu(slices: int = 4) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(0)
    return tuple(x.to(GPU) for x in (
        torch.from_numpy(rng.random((slices, 3, 64, 32), np.float32)),
        torch.from_numpy(rng.integers(0, 6, (slices, 64, 32), np.uint8)),
        torch.from_numpy(rng.random((slices, 6, 64, 32)) < 0.5)))


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("batch_norm", [True, False], ids=["norm", "plain"])
def test_nothing_in_a_step_waits_for_the_gpu(batch_norm, micro_batch):
    """torch raises at every hidden synchronisation."""
    if batch_norm and micro_batch:
        pytest.skip("a batch with batch norm is not divided")
    network = tiny_network(batch_norm, 6).to(GPU, memory_format=torch.channels_last)
    optimizer, batch = torch.optim.Adam(network.parameters(), fused=True), batch_on_gpu()
    for warm in (True, False):
        torch.cuda.set_sync_debug_mode("default" if warm else "error")
        try:
            values = training_step(network, batch, Move(True, 1), TERMS, optimizer, torch.ones(6, device=GPU),
                                   micro_batch=micro_batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(v) for v in values.values())


def test_mixed_precision_and_channels_last():
    network = tiny_network(True, 6).to(GPU, memory_format=torch.channels_last)
    seen = {}
    network.features[0].register_forward_hook(lambda _, __, out: seen.update(out=out))
    with autocast(GPU):
        network(batch_on_gpu()[0].to(memory_format=torch.channels_last))
    assert seen["out"].is_contiguous(memory_format=torch.channels_last)
    assert seen["out"].dtype == (torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_as_they_were_made(workers):
    here, there = endless_batches(tiny_dataset(), 5, 3), endless_batches(tiny_dataset(), 5, 3, 0, workers, GPU)
    for _ in range(5):
        assert all(x.device.type == "cuda" and torch.equal(x.cpu(), y) for x, y in zip(next(there), next(here)))


def test_training_learns_on_a_gpu_and_agrees_with_its_inference():
    network = tiny_network().to(GPU)
    history = fit(network, tiny_dataset(), [(1.0, point_term)], schedule_of(rounds=(4,), learning_rate=3e-3,
                                                                            round_steps=10),
                  lambda n: validation_score(n, [tiny_scan(2)], "sagittal", 32), 7, workers=2)
    assert history.best_validation > 0.8
    on_gpu, on_cpu = (predict_labels(network.to(where), tiny_scan(2), "sagittal", 32) for where in (GPU, "cpu"))
    assert (on_gpu == on_cpu).mean() > 0.98


@pytest.mark.parametrize("batch_norm", [True, False], ids=["norm", "plain"])
def test_real_lack_of_memory(batch_norm):
    """A process that may use little of the GPU: trained in pieces, or with activations on the CPU, or told why not."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(64 * 2**20 / torch.cuda.get_device_properties(0).total_memory)
    try:
        fit(tiny_network(batch_norm).to(GPU), tiny_dataset(), [(1.0, point_term)], schedule_of(rounds=(1,)),
            lambda n: 0.0, 3)
    except ScanError as error:
        assert "out of memory" in str(error)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
