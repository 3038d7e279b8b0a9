"""Checkpoints: exact to the bit, whole or not there, and honest about what is damaged."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bifocal
from bifocal.config import UserError
from bifocal.training import checkpoint


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def save_step(directory: Path, step: int, keep: int = 3) -> Path:
    return checkpoint.save(
        directory,
        step,
        model_tensors={"weight": torch.full((4, 4), float(step))},
        trainer_tensors={"moment": torch.full((4,), float(step))},
        state={"seen": step * 8},
        keep=keep,
    )


def test_the_round_trip_is_exact_to_the_bit_in_every_dtype(tmp_path: Path) -> None:
    tensors = {
        "float32": torch.randn(3, 5),
        "bfloat16": torch.randn(3, 5).to(torch.bfloat16),
        "float16": torch.randn(3, 5).half(),
        "float64": torch.randn(7, dtype=torch.float64),
        "int64": torch.randint(-(2**62), 2**62, (2, 2)),
        "uint8": torch.get_rng_state(),
        "bool": torch.rand(9) > 0.5,
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
    }
    state = {"step": 3, "loss": 0.1 + 0.2, "recipe": {"name": "ü", "sizes": [1, None, True]}}
    checkpoint.save(tmp_path, 12, model_tensors=tensors, trainer_tensors={}, state=state)
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert (loaded.step, loaded.state, loaded.notes) == (12, state, ())
    assert loaded.trainer_tensors == {}
    assert loaded.model_tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded.model_tensors[name].dtype == tensor.dtype
        assert loaded.model_tensors[name].shape == tensor.shape
        assert bits(loaded.model_tensors[name]) == bits(tensor), name
    assert sorted(file.name for file in loaded.path.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "state.json",
        "trainer.safetensors",
    ]


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    storage = torch.arange(1000.0)
    tensors = {
        "tied": storage,
        "tied too": storage,
        "slice": storage[10:20],
        "transposed": storage.view(10, 100).T,
        "expanded": storage[:1].expand(6),
        "parameter": nn.Parameter(storage[:3]),
    }
    path = checkpoint.save(tmp_path, 1, model_tensors=tensors, trainer_tensors={}, state={})
    loaded = checkpoint.load_step(path).model_tensors
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name
    # A slice must not drag its whole storage along: 3 x 1000 + 10 + 6 + 3 numbers, and a header.
    assert (path / "model.safetensors").stat().st_size < 4 * 3019 + 1000


def test_channels_last_weights_come_back_with_their_values(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    path = checkpoint.save(tmp_path, 1, model_tensors={"w": weight}, trainer_tensors={}, state={})
    assert torch.equal(checkpoint.load_step(path).model_tensors["w"], weight)


def test_the_newest_are_kept_and_the_oldest_removed(tmp_path: Path) -> None:
    for step in (5, 9, 10, 100):
        save_step(tmp_path, step, keep=2)
    assert checkpoint.steps(tmp_path) == [10, 100]
    with pytest.raises(ValueError, match="at least one checkpoint"):
        save_step(tmp_path, 200, keep=0)


def test_the_step_just_written_is_kept_even_if_damaged_later_ones_stand_beyond_it(tmp_path: Path) -> None:
    save_step(tmp_path, 10)
    flip_a_byte(save_step(tmp_path, 30) / "model.safetensors")
    save_step(tmp_path, 20, keep=1)
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None and loaded.step == 20


def test_nothing_old_is_removed_when_the_new_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_step(tmp_path, 1, keep=1)

    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError("disk gone")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.artifacts, "atomic_write_json", fail)
        with pytest.raises(OSError, match="disk gone"):
            save_step(tmp_path, 2, keep=1)
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None and loaded.step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_step_is_written_again_in_place_of_itself(tmp_path: Path) -> None:
    flip_a_byte(save_step(tmp_path, 7) / "model.safetensors")
    save_step(tmp_path, 7)
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None and (loaded.step, loaded.notes) == (7, ())


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"saving step 3 needs 1 MiB and the disk of .* has 1 MiB free"):
        save_step(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []


def test_state_that_json_cannot_hold_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    for state, error in (({"loss": float("nan")}, ValueError), ({"path": object()}, TypeError)):
        with pytest.raises(error):
            checkpoint.save(tmp_path, 1, model_tensors={}, trainer_tensors={}, state=state)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- damage


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 0x40
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.safetensors", "state.json"])
def test_a_flipped_byte_is_found_and_the_step_before_is_taken(tmp_path: Path, name: str) -> None:
    save_step(tmp_path, 1)
    flip_a_byte(save_step(tmp_path, 2) / name)
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None and loaded.step == 1
    assert torch.equal(loaded.model_tensors["weight"], torch.full((4, 4), 1.0))
    assert len(loaded.notes) == 1
    assert f"step-2': '{tmp_path / 'step-2' / name}' is damaged" in loaded.notes[0]
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load_step(tmp_path / "step-2")


def test_if_every_step_is_damaged_the_user_decides(tmp_path: Path) -> None:
    for step in (1, 2):
        flip_a_byte(save_step(tmp_path, step) / "model.safetensors")
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact: .*step-2.*; .*step-1"):
        checkpoint.load(tmp_path)


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None
    assert checkpoint.load(tmp_path / "nowhere") is None


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    path = save_step(tmp_path, 1)
    content = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(content | {"format": 99}))
    checkpoint.artifacts.write_manifest(path)
    with pytest.raises(UserError, match="format 99, and this version reads format 1"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "moment", ["model.safetensors", "trainer.safetensors", "state.json", "manifest.json"]
)
def test_a_process_killed_while_writing_leaves_the_step_before(tmp_path: Path, moment: str) -> None:
    """A real kill, at the time when `moment` has just been opened for writing or would be renamed."""
    save_step(tmp_path, 1)
    script = textwrap.dedent(
        """
        import os, signal, sys
        import torch
        from bifocal import artifacts
        from bifocal.training import checkpoint

        directory, moment = sys.argv[1:]
        save_file, write_json = checkpoint.save_file, artifacts.atomic_write_json

        def die_or(write):
            def wrapped(first, second, **keywords):
                path = second if write is save_file else first
                if os.path.basename(path) == moment:
                    with open(path, "wb") as file:
                        file.write(b"half of it")
                    os.kill(os.getpid(), signal.SIGKILL)
                write(first, second, **keywords)
            return wrapped

        checkpoint.save_file, artifacts.atomic_write_json = die_or(save_file), die_or(write_json)
        tensors = {"weight": torch.full((4, 4), 2.0)}
        checkpoint.save(directory, 2, model_tensors=tensors, trainer_tensors=tensors, state={}, keep=1)
        """
    )
    source = str(Path(bifocal.__path__[0]).parent)
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), moment], env=environment)
    assert done.returncode == -9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2.tmp"]

    loaded = checkpoint.load(tmp_path)
    assert loaded is not None and loaded.step == 1
    assert "step-2.tmp': its writing was never finished" in loaded.notes[0]
    save_step(tmp_path, 2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-1", "step-2"]


# ---------------------------------------------------------------- optimizers


class Network(nn.Module):
    """A convolution in channels-last layout and matrices, so that moments have more than one layout."""

    def __init__(self, layout: torch.memory_format = torch.channels_last) -> None:
        super().__init__()
        self.layout = layout
        self.convolution = nn.Conv2d(3, 8, 3, padding=1).to(memory_format=layout)
        self.hidden = nn.Linear(8, 16)
        self.out = nn.Linear(16, 4, bias=False)

    def forward(self, images: Tensor) -> Tensor:  # (B,3,8,8) -> (B,4)
        features = self.convolution(images.contiguous(memory_format=self.layout))
        return self.out(torch.relu(self.hidden(features.mean(dim=(2, 3)))))


def adamw(network: Network) -> list[torch.optim.Optimizer]:
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), fused=True)]


def muon_and_adamw(network: Network) -> list[torch.optim.Optimizer]:
    matrices = [p for p in network.parameters() if p.ndim == 2]
    others = [p for p in network.parameters() if p.ndim != 2]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0, adjust_lr_fn="original")
    return [muon, torch.optim.AdamW(others, lr=2e-3, fused=True, amsgrad=True)]


def sgd(network: Network) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)]


def lbfgs(network: Network) -> list[torch.optim.Optimizer]:
    return [torch.optim.LBFGS(network.parameters(), max_iter=2, history_size=3)]


def train(network: Network, optimizers: list[torch.optim.Optimizer], first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(4, 3, 8, 8, generator=generator)
        noise = torch.rand(4, 4)  # from the global generator, whose state must be resumed too

        def closure(images: Tensor = images, noise: Tensor = noise) -> Tensor:
            network.zero_grad()
            loss = (network(images) - noise).square().mean()
            loss.backward()
            return loss

        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * 0.99  # as a schedule does
            optimizer.step(closure)


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (adamw, torch.channels_last),
        (muon_and_adamw, torch.channels_last),
        (sgd, torch.channels_last),
        (lbfgs, torch.contiguous_format),  # the one with lists of tensors; it cannot do channels last itself
    ],
)
def test_resumed_equals_uninterrupted_to_the_bit(
    tmp_path: Path, make: Callable[[Network], list[torch.optim.Optimizer]], layout: torch.memory_format
) -> None:
    torch.manual_seed(1)
    network = Network(layout)
    optimizers = make(network)
    train(network, optimizers, 0, 3)
    tensors, scalars = checkpoint.flatten_all(optimizers)
    checkpoint.save(
        tmp_path,
        3,
        model_tensors=network.state_dict(),
        trainer_tensors=tensors | checkpoint.random_state(),
        state={"optimizers": scalars},
    )
    train(network, optimizers, 3, 6)

    torch.manual_seed(2)
    resumed = Network(layout)
    resumed_optimizers = make(resumed)
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    resumed.load_state_dict(loaded.model_tensors)
    checkpoint.restore_all(resumed_optimizers, loaded.trainer_tensors, loaded.state["optimizers"])
    checkpoint.restore_random_state(loaded.trainer_tensors)
    train(resumed, resumed_optimizers, loaded.step, 6)

    for (name, expected), actual in zip(network.named_parameters(), resumed.parameters(), strict=True):
        assert bits(actual.detach()) == bits(expected.detach()), name
    assert checkpoint.flatten_all(resumed_optimizers)[1] == checkpoint.flatten_all(optimizers)[1]


def test_restored_moments_keep_the_layout_and_the_types_of_the_saved(tmp_path: Path) -> None:
    network = Network().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.95))
    for parameter in network.parameters():
        # float32 moments beside bf16 weights, as trainers with masters have them
        moments = torch.rand_like(parameter, dtype=torch.float32)
        optimizer.state[parameter] = {
            "step": torch.tensor(5.0),
            "exp_avg": moments,
            "exp_avg_sq": moments + 1,
        }
    tensors, scalars = checkpoint.flatten_optimizer_state(optimizer)
    scalars = json.loads(json.dumps(scalars))

    other = Network().to(torch.bfloat16)
    restored = torch.optim.AdamW(other.parameters())
    checkpoint.restore_optimizer_state(restored, tensors, scalars)
    assert restored.param_groups[0]["betas"] == (0.9, 0.95)
    for ours, theirs in zip(other.parameters(), network.parameters(), strict=True):
        for key, expected in optimizer.state[theirs].items():
            actual = restored.state[ours][key]
            assert actual.dtype == expected.dtype
            assert actual.stride() == expected.stride()
            assert torch.equal(actual, expected)
            assert actual.data_ptr() != expected.data_ptr()


def test_an_optimizer_before_its_first_step_and_odd_settings_survive() -> None:
    network = Network()
    optimizer = torch.optim.SGD(network.parameters(), lr=torch.tensor(0.25), momentum=float("inf"))
    tensors, scalars = checkpoint.flatten_optimizer_state(optimizer, "first")
    assert list(tensors) == ["first.groups.0.lr"]
    restored = torch.optim.SGD(network.parameters(), lr=1.0)
    checkpoint.restore_optimizer_state(restored, tensors, json.loads(json.dumps(scalars, allow_nan=False)))
    group = restored.param_groups[0]
    assert torch.equal(group["lr"], torch.tensor(0.25))
    assert group["momentum"] == float("inf")
    assert list(restored.state) == []


def test_the_state_of_other_parameters_is_refused_in_words() -> None:
    _, scalars = checkpoint.flatten_optimizer_state(torch.optim.SGD(nn.Linear(3, 4).parameters()))
    with pytest.raises(
        UserError, match="2 tensors of 16 numbers were saved, 1 tensors of 12 numbers are here"
    ):
        checkpoint.restore_optimizer_state(torch.optim.SGD([nn.Linear(3, 4).weight]), {}, scalars)
    with pytest.raises(UserError, match="1 optimizers were saved and 0 are here"):
        checkpoint.restore_all([], {}, [scalars])


def test_what_only_pickle_could_hold_is_refused() -> None:
    optimizer = torch.optim.SGD(nn.Linear(3, 4).parameters())
    optimizer.param_groups[0]["schedule"] = object()
    with pytest.raises(TypeError, match=r"optimizer.groups.0.schedule' of type object cannot be saved"):
        checkpoint.flatten_optimizer_state(optimizer)
