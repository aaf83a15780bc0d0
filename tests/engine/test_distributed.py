import pytest
import torch
from small_batches import small_batch, small_model
from small_runs import run_on_two_processes

from maskperf.config import OptimizerConfig
from maskperf.engine import distributed
from maskperf.engine.distributed import Topology
from maskperf.engine.optimizer import build_optimizer
from maskperf.engine.step import train_step
from maskperf.model.resnet import FrozenBatchNorm

ALONE = Topology()


@pytest.fixture(scope="module", params=["plain", "buffer"])
def two_processes(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("ranks")
    done = run_on_two_processes("engine/two_process_step.py", str(folder), request.param)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("device", [torch.device("cuda"), torch.device("cuda", 1)])
def test_a_gpu_is_claimed_by_its_index_and_computes_float32_as_float32(monkeypatch, device):
    claimed = []
    monkeypatch.setattr(torch.cuda, "set_device", claimed.append)
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.conv.fp32_precision, products.fp32_precision
    try:
        cudnn.conv.fp32_precision = products.fp32_precision = "tf32"
        assert distributed.claim_gpu(device) == torch.device("cuda", device.index or 0)
        assert claimed == [torch.device("cuda", device.index or 0)] and claimed[0].index is not None
        assert cudnn.conv.fp32_precision == products.fp32_precision == "ieee"
        assert not cudnn.benchmark  # known shapes alone are worth a search
    finally:
        cudnn.conv.fp32_precision, products.fp32_precision = before


def test_running_statistics_are_averaged_in_one_exchange_and_frozen_ones_are_left_alone(monkeypatch):
    """Eight processes that hold the same numbers: their mean is rounded, so what is averaged moves in its last bit."""
    exchanges = []

    def all_reduce(value):
        exchanges.append(value.numel())
        total = value.clone()
        for _ in range(7):
            total += value
        value.copy_(total * (1 + 2**-20))  # others differ a little

    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(5), FrozenBatchNorm(7), torch.nn.BatchNorm2d(3))
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    topology = Topology(rank=3, world=8)
    distributed.average_buffers(model, topology)
    assert exchanges == [2 * (5 + 3)]
    for name, buffer in model.named_buffers():
        if name.startswith("1.") or "num_batches" in name:
            assert torch.equal(buffer, before[name]), name
        else:
            torch.testing.assert_close(buffer, before[name], rtol=2e-6, atol=0)
            assert not torch.equal(buffer, before[name]), name


@pytest.fixture(scope="module")
def one_process():
    """Return losses, gradients and weights after a step on the same two images as micro-batches."""
    model = small_model(seed=0)
    config = OptimizerConfig(batch_size=2, accumulation_steps=2, learning_rate=0.01, warmup_steps=0)
    batches = [small_batch(0), small_batch(1)]
    result = train_step(model, build_optimizer(model, config), batches, update=1, config=config, topology=ALONE)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"losses": result.losses, "gradients": gradients, "weights": model.state_dict()}


@pytest.mark.parametrize("what", ["gradients", "weights"])
def test_two_processes_equal_one_with_the_same_images(what, two_processes, one_process):
    for rank in range(2):
        assert two_processes[rank][what].keys() == one_process[what].keys()
        for name, wanted in one_process[what].items():
            scale = float(wanted.abs().max()) or 1.0
            torch.testing.assert_close(two_processes[rank][what][name], wanted, rtol=1e-4, atol=1e-5 * scale)


def test_losses_are_means_over_the_processes(two_processes, one_process):
    for rank in range(2):
        torch.testing.assert_close(two_processes[rank]["losses"], one_process["losses"], rtol=1e-5, atol=1e-6)
