"""What only a GPU can show.  Skipped without one; `test_train` runs the same step on torch's `meta` device."""

import numpy as np
import pytest
import torch
from tiny import TERMS, schedule_of, tiny_network, tiny_scan, tiny_training

from pointseg.losses import Move
from pointseg.network import autocast
from pointseg.predict import Model
from pointseg.runs.checkpoint import Checkpoints
from pointseg.train import training_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is here")
GPU = torch.device("cuda")
SCHEDULE = schedule_of(rounds=(4,), learning_rate=3e-3, round_steps=10)


def batch_on_gpu(slices: int = 4) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(0)
    return tuple(x.to(GPU) for x in (
        torch.from_numpy(rng.random((slices, 3, 64, 32), np.float32)),
        torch.from_numpy(rng.integers(0, 6, (slices, 64, 32), np.uint8)),
        torch.from_numpy(rng.random((slices, 6, 64, 32)) < 0.5)))


@pytest.mark.parametrize("batch_norm", [True, False], ids=["norm", "plain"])
def test_nothing_in_a_step_waits_for_the_gpu(batch_norm):
    """torch raises at every hidden synchronisation."""
    network = tiny_network(batch_norm, 6).to(GPU, memory_format=torch.channels_last)
    optimizer, batch = torch.optim.Adam(network.parameters(), fused=True), batch_on_gpu()
    for warm in (True, False):
        torch.cuda.set_sync_debug_mode("default" if warm else "error")
        try:
            values = training_step(network, batch, Move(True, 1), TERMS, optimizer, torch.ones(6, device=GPU))
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


def test_training_learns_on_a_gpu_and_agrees_with_its_inference(tmp_path):
    network = tiny_network().to(GPU)
    history, _ = tiny_training(SCHEDULE, Checkpoints("training", tmp_path, workers=2), network)
    assert history.best_validation > 0.8
    on_gpu, on_cpu = (Model(network.to(where), "sagittal", 1.0, 32).labels(tiny_scan(2)) for where in (GPU, "cpu"))
    assert (on_gpu == on_cpu).mean() > 0.98


def test_a_training_goes_on_on_a_gpu(tmp_path):
    """Broken off in its second round: the first is not repeated, the random numbers are those of the GPU."""
    class BrokenOff(Checkpoints):
        def due(self, least_s):
            return True

        def after_step(self, training):
            super().after_step(training)
            if training.step == 13:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_training(SCHEDULE, BrokenOff("training", tmp_path), tiny_network().to(GPU))
    kept = Checkpoints("training", tmp_path).read()
    assert kept["step"] == 13 and kept["generator"].shape == torch.cuda.get_rng_state().shape
    history, _ = tiny_training(SCHEDULE, Checkpoints("training", tmp_path), tiny_network().to(GPU))
    assert history.rounds[0].seconds == kept["history"]["rounds"][0]["seconds"] and len(history.rounds) == 4


def test_torchs_word_for_no_room_is_the_one_that_the_command_line_knows():
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**44, device=GPU)
    assert type(found.value).__name__ == "OutOfMemoryError"
