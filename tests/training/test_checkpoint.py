"""Checkpoints between real processes: any number of ranks reads any other's, damage is named, nothing is unpickled."""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm_engine.distributed.process_group import World
from mindllm_engine.errors import CheckpointError
from mindllm_engine.training.checkpoint import checkpoint_of, load_state, publish, retire, sealed, temporary_of, verify
from tests.training import checkpoint_ranks
from tests.training.checkpoint_ranks import MODEL, SHAPES, KnownBackend, Ranks, checkpointer, load, make_state, save
from tests.training.tiny_run import ROOT, environment

ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    ranks = Ranks(4)
    yield ranks
    ranks.kill()


names = st.text(st.sampled_from('abcé.[:]0_ "'), min_size=1, max_size=8)
shapes = st.dictionaries(names, st.lists(st.integers(1, 30), min_size=1, max_size=3).map(tuple), min_size=1, max_size=5)


@settings(max_examples=30, deadline=None)
@given(
    shapes=shapes,
    writers=st.integers(1, 4),
    readers=st.integers(1, 4),
    buckets=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    block_bytes=st.sampled_from([4, 100, 1024, 1 << 24]),
    step=st.integers(0, 10**9),
)
def test_any_number_of_ranks_reads_any_other_bit_for_bit(
    ranks: Ranks, shapes: checkpoint_ranks.Shapes, writers: int, readers: int, buckets: tuple[int, int],
    block_bytes: int, step: int,
) -> None:  # fmt: skip
    if sum(torch.Size(shape).numel() for shape in shapes.values()) > 20_000 and block_bytes == 4:
        block_bytes = 1024
    with tempfile.TemporaryDirectory() as folder:
        ranks.run(writers, save, Path(folder), step, shapes, buckets[0], block_bytes)
        for problem, same, _ in ranks.run(readers, load, Path(folder), step, shapes, buckets[1]):
            assert problem is None
            assert same


def test_replicas_do_not_write_and_do_read(ranks: Ranks, tmp_path: Path) -> None:
    """Four ranks in groups of two: two hold all the state, two the same again."""
    ranks.run(4, save, tmp_path, 5, shards=2)
    size = sum(torch.Size(shape).numel() for shape in SHAPES.values()) * 12
    written = sum(path.stat().st_size for path in checkpoint_of(tmp_path, 5).iterdir())
    assert size < written < size + 40_000
    for world, options in ((4, {"shards": 2}), (3, {})):
        assert [answer[:2] for answer in ranks.run(world, load, tmp_path, 5, **options)] == [(None, True)] * world


def test_files_are_safetensors_and_json_and_hold_what_was_saved(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(3, save, tmp_path, 7)
    whole = {
        f"{kind}/{piece.name}": torch.full((torch.Size(piece.shape).numel(),), -1.0)
        for kind in ("master", "m", "v")
        for piece in KnownBackend(SHAPES, ALONE, 1 << 20).pieces()
    }
    seen = 0
    for path in checkpoint_of(tmp_path, 7).iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
            continue
        assert path.suffix == ".safetensors"
        # The library refuses a file with bytes that belong to no tensor.
        for name, values in safetensors.torch.load_file(path).items():
            if not name.startswith("generator"):
                tensor, part = name.rsplit("[", 1)
                first, stop = map(int, part.removesuffix("]").split(":"))
                whole[tensor][first:stop] = values
                seen += stop - first
    alone = KnownBackend(SHAPES, ALONE, 1 << 20)
    alone.fill(7)
    assert seen == sum(len(tensor) for tensor in whole.values())
    for kind, tensors in alone.state.items():
        for piece, tensor in zip(alone.pieces(), tensors, strict=True):
            assert torch.equal(whole[f"{kind}/{piece.name}"].view(torch.int32), tensor.view(torch.int32))


def test_a_rank_reads_little_more_than_its_share(ranks: Ranks, tmp_path: Path) -> None:
    shapes = {f"layer.{number}": (500, 400) for number in range(5)}
    ranks.run(1, save, tmp_path, 1, shapes, 1 << 20, 1 << 16)
    total = sum(path.stat().st_size for path in checkpoint_of(tmp_path, 1).iterdir())
    for problem, same, read in ranks.run(4, load, tmp_path, 1, shapes, 1 << 20):
        assert (problem, same) == (None, True)
        assert total / 4 < read < total / 4 + 8 * (1 << 16) + 100_000, (read, total)


def generators(world: World, folder: Path, save_first: bool) -> list[int]:
    """Random numbers drawn after saving, or after loading."""
    backend = KnownBackend(SHAPES, world)
    torch.manual_seed(100 + world.rank if save_first else 5)
    torch.rand(77)
    ours = checkpointer(folder, backend, world)
    if save_first:
        ours.save(make_state(1))
    else:
        ours.load(checkpoint_of(folder, 1), MODEL)
    drawn = torch.randint(1 << 40, (5,)).tolist()
    ours.wait()
    return drawn


def test_each_rank_gets_its_random_generator_back(ranks: Ranks, tmp_path: Path) -> None:
    drawn = ranks.run(2, generators, tmp_path, True)
    assert drawn[0] != drawn[1]
    assert ranks.run(2, generators, tmp_path, False) == drawn
    elsewhere = ranks.run(3, generators, tmp_path, False)
    assert elsewhere[0] == elsewhere[1] == elsewhere[2] != drawn[0], "left alone where the number of ranks is another"


@given(st.dictionaries(st.text(max_size=5), st.lists(st.floats(width=64), max_size=4), max_size=3))
@settings(deadline=None)
def test_extra_numbers_come_back_as_the_same_bits(extra: dict[str, list[float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoint_of(Path(folder), 3)
        temporary_of(checkpoint).mkdir()
        publish(checkpoint, replace(make_state(3), extra=extra))
        found = load_state(checkpoint).extra
    assert list(found) == list(extra)
    for name, numbers in extra.items():
        assert [number.hex() for number in found[name]] == [number.hex() for number in numbers]


@given(
    steps=st.lists(st.integers(1, 60), unique=True, min_size=1, max_size=12),
    keep=st.integers(0, 5),
    keep_every=st.integers(0, 10),
)
@settings(deadline=None)
def test_the_last_k_and_every_nth_are_kept(steps: list[int], keep: int, keep_every: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for step in sorted(steps):
            checkpoint_of(folder, step).mkdir()
            retire(folder, keep, keep_every)
        kept = {path.name for path in folder.iterdir()}
    newest = sorted(steps)[-keep:] if keep else steps
    every = [step for step in steps if keep_every and step % keep_every == 0]
    assert kept == {f"step_{step:08d}" for step in {*newest, *every}}


def test_a_step_saved_again_replaces_itself_and_leftovers_go(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(2, save, tmp_path, 4)
    for leftover in (".step_00000002.tmp", ".step_00000004.tmp", ".step_00000003.old.tmp"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "rank_00000.safetensors").write_bytes(b"half")
    ranks.run(3, save, tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000004"]
    assert load_state(checkpoint_of(tmp_path, 4)).world_size == 3
    assert [answer[:2] for answer in ranks.run(1, load, tmp_path, 4)] == [(None, True)]


# Damage


@pytest.fixture(scope="module")
def two_checkpoints(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 4 and 8 of three ranks."""
    folder = tmp_path_factory.mktemp("two")
    for step in (4, 8):
        ranks.run(3, save, folder, step)
    return folder


@pytest.mark.parametrize("file", ["rank_00000.safetensors", "rank_00002.safetensors", "index.json", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "longer"])
def test_damage_is_one_line_on_all_ranks(
    ranks: Ranks, two_checkpoints: Path, tmp_path: Path, file: str, damage: str
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, folder)
    path = checkpoint_of(folder, 8) / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[len(content) // 2] ^= 4 if damage == "altered" else 0
        path.write_bytes(content + b"x" if damage == "longer" else content[: -1 if damage == "truncated" else None])
    answers = ranks.run(2, load, folder, 8)
    assert not any(same for _, same, _ in answers), "nothing has been changed"
    problems = {problem for problem, _, _ in answers}
    assert len(problems) == 1
    message = problems.pop()
    assert message.startswith(f"CheckpointError: {path}: "), message
    assert f"; delete {checkpoint_of(folder, 8)} to go on from step_00000004" in message
    assert "\n" not in message
    with pytest.raises(CheckpointError, match=file):
        verify(checkpoint_of(folder, 8))


def test_the_earlier_checkpoint_named_has_been_read(ranks: Ranks, two_checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, folder)
    shutil.copytree(checkpoint_of(folder, 4), checkpoint_of(folder, 2))
    state = checkpoint_of(folder, 2) / "state.json"
    state.write_bytes(sealed(json.loads(state.read_text()) | {"step": 2}))
    for step in (4, 8):
        path = checkpoint_of(folder, step) / "rank_00001.safetensors"
        content = bytearray(path.read_bytes())
        content[-20_000] ^= 1
        path.write_bytes(content)
    for problem, _, _ in ranks.run(3, load, folder, 8):
        assert problem is not None
        assert problem.endswith("to go on from step_00000002")
    shutil.rmtree(checkpoint_of(folder, 2))
    for problem, _, _ in ranks.run(3, load, folder, 8):
        assert problem is not None
        assert "no earlier one that is whole" in problem


def test_any_altered_bit_is_found(two_checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, folder)
    verify(checkpoint_of(folder, 8))
    rng = random.Random(1)
    for path in sorted(checkpoint_of(folder, 8).iterdir()):
        content = path.read_bytes()
        for _ in range(100):
            altered = bytearray(content)
            altered[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(altered)
            with pytest.raises(CheckpointError, match=path.name):
                verify(checkpoint_of(folder, 8))
        path.write_bytes(content)
    verify(checkpoint_of(folder, 8))


def load_another_network(world: World, folder: Path) -> str:
    assert MODEL.mindllm is not None
    backend = KnownBackend(SHAPES, world)
    other = replace(MODEL, mindllm=replace(MODEL.mindllm, n_layers=3))
    with pytest.raises(CheckpointError) as caught:
        checkpointer(folder, backend, world).load(checkpoint_of(folder, 8), other)
    return str(caught.value)


def test_another_networks_checkpoint(ranks: Ranks, two_checkpoints: Path) -> None:
    messages = ranks.run(2, load_another_network, two_checkpoints)
    assert messages[0] == messages[1]
    assert "of another model: model.mindllm.n_layers was 2 and is 3; choose another run.dir" in messages[0]


def test_shapes_that_the_configuration_does_not_tell(ranks: Ranks, two_checkpoints: Path) -> None:
    """A bug or a forged file, but no crash: the network's code has changed under the same configuration."""
    for changed in (SHAPES | {"up": (48, 33)}, SHAPES | {"new": (3, 3)}):
        for problem, same, _ in ranks.run(2, load, two_checkpoints, 8, changed):
            assert problem is not None
            assert "elements, found" in problem
            assert not same


def test_the_first_format_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, 4)
    checkpoint.mkdir()
    (checkpoint / "state.json").write_text(json.dumps({"step": 4, "next_sample": 32, "files": {}}))
    with pytest.raises(
        CheckpointError, match=r"step_00000004/state.json: has format 1, and this release reads 2 only: use the"
    ):
        load_state(checkpoint)


def test_versions_are_told_and_another_version_is_read(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(2, save, tmp_path, 4)
    path = checkpoint_of(tmp_path, 4) / "state.json"
    state = json.loads(path.read_text())
    assert (state["torch"], state["world_size"]) == (torch.__version__, 2)
    path.write_bytes(sealed(state | {"torch": "2.11.0", "engine": "0.0.9"}))
    assert [answer[:2] for answer in ranks.run(2, load, tmp_path, 4)] == [(None, True)] * 2


def test_nothing_is_unpickled(ranks: Ranks, tmp_path: Path) -> None:
    """A process in which unpickling raises loads a checkpoint of two ranks, and saves one."""
    ranks.run(2, save, tmp_path, 4)
    program = (
        "import pickle, _pickle, sys\n"
        "from pathlib import Path\n"
        "from tests.training.test_checkpoint import ALONE, load, save\n"
        "def refuse(*arguments, **options): raise AssertionError('unpickling')\n"
        "for module in (pickle, _pickle):\n"
        "    for name in ('load', 'loads', 'Unpickler'): setattr(module, name, refuse)\n"
        "pickle._Unpickler.load = refuse\n"
        "save(ALONE, Path(sys.argv[1]), 8)\n"
        "for step in (4, 8): assert load(ALONE, Path(sys.argv[1]), step)[:2] == (None, True)\n"
        "print('loaded')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment(), cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "loaded\n", done.stderr
    assert done.stderr == "", "and without a warning"


def test_the_state_is_a_copy_of_what_the_caller_gave(tmp_path: Path) -> None:
    backend = KnownBackend(SHAPES, ALONE)
    given_state = make_state(2)
    saving = checkpointer(tmp_path, backend, ALONE)
    saving.save(given_state)
    saving.wait()
    assert given_state.files == {}
    found = load_state(checkpoint_of(tmp_path, 2))
    assert set(found.files) == {"rank_00000.safetensors", "index.json"}
    assert asdict(found) | {"files": {}} == asdict(given_state)
