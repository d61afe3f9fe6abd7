"""Scores files of instruction data by entropy, on any number of ranks, and goes on where a killed run ended.

    OUT/.lock             held by the process that scores into the folder
    OUT/setting.json      what the scores depend on; a run with another setting is refused
    OUT/parts/*.parquet   some records each, written by one rank as they are done; they go once all are
    OUT/scores.parquet    a row for every line of the files in their order: file, line and the fields of `entropy.Score`
    OUT/problems.jsonl    the lines that were not simply scored, and why

A part is packed by itself, so that its bits depend neither on the ranks nor on where a run was interrupted.
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import orjson
import torch

from mindllm_engine.command_line import printable
from mindllm_engine.corpus.chat_template import TEMPLATE_FILE, ChatTemplate, TemplateConfig, load_template
from mindllm_engine.corpus.json_lines import read_lines
from mindllm_engine.corpus.open_tokenizer import TextTokenizer
from mindllm_engine.data.atomic_files import exclusive_lock, file_hash, write_atomically
from mindllm_engine.distributed.process_group import World, any_rank, raise_together, start_processes, stop_processes
from mindllm_engine.errors import ConfigError, DataError, MindLLMError
from mindllm_engine.models import Network
from mindllm_engine.training.checkpoint import STATE_FILE
from mindllm_engine.training.scoring import PACK_TOKENS
from mindllm_engine.training.weights import find_checkpoint, load_model, tokenizer_of
from mindllm_engine.tuning.entropy import PlainText, PromptTemplate, Scorer, TooLong
from mindllm_engine.tuning.record_progress import RecordProgress
from mindllm_engine.tuning.records import BadRecord, Record, parse_record

SCORES_FILE = "scores.parquet"
SETTING_FILE = "setting.json"
PROBLEMS_FILE = "problems.jsonl"
_PARTS = "parts"


@dataclass
class ScoreConfig:
    """What is scored, under which network, and how."""

    run: str
    """The run folder of the pre-trained network, or one of its checkpoints in it."""
    records: list[str]
    """Files of JSON lines, plain, .gz or .zst: instruction/input/output, or chats."""
    out: str
    """Folder for the scores. One that holds parts of the same setting is gone on with."""
    rendering: Literal["auto", "plain", "chat"] = "auto"
    """How a record becomes tokens: chat takes the run's chat template, or the usual one where the run has none and its
    tokenizer the symbols; plain writes each message on a line of its own; auto is chat for a tuned run, plain for one
    that is only pre-trained, whose network has never met the symbols."""
    too_long: TooLong = "cut"
    """What becomes of a record that the network has no room for: its answer is cut, or the record is dropped. Both are
    listed."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """In which the network computes. Entropies in bf16 differ by about 1e-2, and more with other packs."""
    pack_tokens: int = PACK_TOKENS
    """Tokens in a forward. Takes memory, and changes entropies by rounding."""
    part_records: int = 2048
    """Records in a part: as many are done again, at most, by each rank of a run that was killed."""

    def validate(self) -> None:
        """Raises ConfigError naming the first field that cannot be used."""
        if not self.records:
            raise ConfigError("records: name at least one file")
        for name in ("pack_tokens", "part_records"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, not {getattr(self, name)}")


@dataclass
class _File:
    """A file of records: its path, its hash, and how many lines of it are not blank."""

    path: str
    hash: str = field(init=False)
    records: int = field(init=False)

    def __post_init__(self) -> None:
        self.records = sum(1 for _ in read_lines(self.path))
        self.hash = file_hash(self.path)


def score_files(config: ScoreConfig) -> Path:
    """Score all records, each rank its parts; returns the file of scores, which rank 0 writes. Collective.

    Raises:
        MindLLMError: a file, the network or its tokenizer cannot be used, or `out` holds scores of another setting.
    """
    config.validate()
    world = start_processes()
    out = Path(config.out)
    held = contextlib.ExitStack()  # rank 0's lock
    try:
        files = [_File(path) for path in config.records]
        setting = _setting(config, files)
        _together(world, out, lambda: held.enter_context(exclusive_lock(out / ".lock", lambda: _refuse_second(out))))
        _together(world, out, lambda: _begin(out, setting))
        if not (out / SCORES_FILE).exists():
            parts = -(-sum(file.records for file in files) // config.part_records)
            _score_parts(config, files, world)
            any_rank(False)  # all have written their parts
            _together(world, out, lambda: _merge(out, parts))
        any_rank(False)
        return out / SCORES_FILE
    finally:
        held.close()
        stop_processes()


def _refuse_second(out: Path) -> NoReturn:
    raise DataError(f"{out}: another process is scoring into it; wait for it, or choose another out")


def _together(world: World, out: Path, action: Any) -> None:
    """Let rank 0 do something in the folder; if it fails, all fail."""
    failure: MindLLMError | None = None
    if world.is_first:
        try:
            action()
        except MindLLMError as error:
            failure = error
        except OSError as error:
            failure = DataError(f"{out}: cannot be written ({error.strerror}); check the folder and its permissions")
    raise_together(failure, f"rank 0 cannot write to {out}")


def _setting(config: ScoreConfig, files: list[_File]) -> dict[str, Any]:
    """What the scores depend on, and where the records are found again."""
    checkpoint = find_checkpoint(Path(config.run))
    return {
        "run": str(_run_folder(Path(config.run)).resolve()),
        "checkpoint": checkpoint.name,
        "checkpoint_hash": file_hash(checkpoint / STATE_FILE),
        "rendering": _rendering(config),
        "too_long": config.too_long,
        "precision": config.precision,
        "pack_tokens": config.pack_tokens,
        "part_records": config.part_records,
        "files": [{**asdict(file), "path": str(Path(file.path).resolve())} for file in files],
    }


def _run_folder(source: Path) -> Path:
    """The run folder that `source` is, or in whose checkpoints/ it lies."""
    return source.resolve().parent.parent if (source / STATE_FILE).exists() else source


def _rendering(config: ScoreConfig) -> str:
    if config.rendering != "auto":
        return config.rendering
    return "chat" if (_run_folder(Path(config.run)) / TEMPLATE_FILE).exists() else "plain"


def _begin(out: Path, setting: dict[str, Any]) -> None:
    path = out / SETTING_FILE
    if path.exists():
        held = read_setting(out)
        # A folder of records may have moved.
        for key in setting:
            mine, theirs = _without_paths(setting[key]), _without_paths(held.get(key))
            if key != "run" and mine != theirs:
                raise ConfigError(
                    f"{out}: holds scores of another {key} ({printable(str(theirs))}, now {printable(str(mine))}); "
                    "choose another out, or delete it"
                )
    write_atomically(path, orjson.dumps(setting, option=orjson.OPT_INDENT_2) + b"\n")
    (out / _PARTS).mkdir(exist_ok=True)


def _without_paths(value: Any) -> Any:
    if isinstance(value, list):
        return [{key: entry[key] for key in ("hash", "records")} for entry in value]
    return value


def read_setting(out: Path) -> dict[str, Any]:
    """What scores in a folder were made with. Raises DataError where there are none, or the file is damaged."""
    path = out / SETTING_FILE
    try:
        setting: dict[str, Any] = orjson.loads(path.read_bytes())
        if not isinstance(setting, dict) or not {"run", "files"} <= setting.keys():
            raise ValueError("keys are missing")
        return setting
    except OSError as error:
        raise DataError(
            f"{out}: holds no scores ({error.strerror}); give the folder that score_instructions.py wrote"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}; delete the folder and score again") from error


def read_table(path: Path) -> Any:
    """The Arrow table in a file of scores. Raises DataError where it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing; let score_instructions.py finish") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged ({error}); delete it and score again") from error


def _score_parts(config: ScoreConfig, files: list[_File], world: World) -> None:
    """Write this rank's parts, but for those that are there."""
    out = Path(config.out)
    total = sum(file.records for file in files)
    numbers = range(-(-total // config.part_records))
    missing = [number for number in numbers if not _part(out, number).exists()]
    mine = set(missing[world.rank :: world.world_size])
    if not mine:
        return
    scorer = _scorer(config, world.device)
    share = sum(min(config.part_records, total - number * config.part_records) for number in mine)
    # The ranks take turns, so the share of one tells of all.
    with RecordProgress("scoring" if world.world_size == 1 else "scoring (rank 0)", share, world.is_first) as progress:
        for number, lines in _parts(files, config.part_records):
            if number in mine:
                records = [parse_record(f"{Path(path).name}:{line}", content) for path, line, content in lines]
                write_atomically(_part(out, number), _table(scorer, lines, records))
                progress.add(len(lines))


def _part(out: Path, number: int) -> Path:
    return out / _PARTS / f"{number:06d}.parquet"


_Line = tuple[str, int, bytes]


def _parts(files: list[_File], part_records: int) -> Iterator[tuple[int, list[_Line]]]:
    """(number, lines) of every part in turn."""
    number, lines = 0, []
    for file in files:
        for line, content in read_lines(file.path):
            lines.append((file.path, line, content))
            if len(lines) == part_records:
                yield number, lines
                number, lines = number + 1, []
    if lines:
        yield number, lines


def _scorer(config: ScoreConfig, device: torch.device) -> Scorer:
    model, tokenizer = _network(config, device)
    return Scorer(model, tokenizer, _template(config, tokenizer), config.too_long, config.pack_tokens)


def _network(config: ScoreConfig, device: torch.device) -> tuple[Network, TextTokenizer]:
    """The network in the wanted precision and the tokenizer it was trained with."""
    checkpoint = find_checkpoint(Path(config.run))
    tokenizer = tokenizer_of(checkpoint)
    model, _ = load_model(checkpoint, device)
    return model.to(torch.bfloat16 if config.precision == "bf16" else torch.float32), tokenizer


def _template(config: ScoreConfig, tokenizer: TextTokenizer) -> PromptTemplate:
    if _rendering(config) == "plain":
        return PlainText(tokenizer)
    folder = _run_folder(Path(config.run))
    return load_template(folder, tokenizer) if (folder / TEMPLATE_FILE).exists() else _usual_template(tokenizer)


def _usual_template(tokenizer: TextTokenizer) -> ChatTemplate:
    try:
        return ChatTemplate(TemplateConfig(), tokenizer)
    except ConfigError as error:
        raise ConfigError(f"rendering chat: {error}; or score with rendering plain") from error


def _table(scorer: Scorer, lines: list[_Line], records: list[Record | BadRecord]) -> bytes:
    """The rows of a part as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"file": Path(path).name, "line": line, **asdict(score)}
        for (path, line, _), score in zip(lines, scorer.scores(records), strict=True)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, _schema()), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _schema() -> Any:
    import pyarrow as pa

    texts = {name: pa.string() for name in ("status", "reason", "id", "lang")}
    counts = ("instruction_chars", "response_chars", "instruction_tokens", "response_tokens")
    entropies = ("response_entropy", "whole_entropy", "response_alone_entropy", "ifd")
    return pa.schema(
        {"file": pa.string(), "line": pa.int64()}
        | texts
        | {name: pa.int64() for name in counts}
        | {name: pa.float64() for name in entropies}
    )


def _merge(out: Path, parts: int) -> None:
    """Make the file of scores and the list of problems of all parts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [read_table(_part(out, number)) for number in range(parts)]
    table = pa.concat_tables(tables) if tables else _schema().empty_table()
    problems = [
        {"place": f"{row['file']}:{row['line']}", "status": row["status"], "reason": row["reason"]}
        for row in table.select(["file", "line", "status", "reason"]).to_pylist()
        if row["status"] != "scored"
    ]
    write_atomically(out / PROBLEMS_FILE, b"".join(orjson.dumps(problem) + b"\n" for problem in problems))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomically(out / SCORES_FILE, sink.getvalue().to_pybytes())
    shutil.rmtree(out / _PARTS)
