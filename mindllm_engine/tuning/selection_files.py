"""Files of the choice of instruction data: reads the scores of `score_files.py`, lets `selection.py` choose, and writes

    OUT/<choice>.jsonl, <choice>_random.jsonl, <choice>_length_matched.jsonl    records, as they were, and their place
    OUT/report.md, report.json, entropies.png                                   selection_report.py

The folder appears complete or not at all.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mindllm_engine.corpus.json_lines import read_lines
from mindllm_engine.data.atomic_files import file_hash, write_atomically
from mindllm_engine.errors import DataError
from mindllm_engine.training.checkpoint import step_of
from mindllm_engine.training.metrics import METRICS_FILE, read_metrics
from mindllm_engine.tuning.score_files import SCORES_FILE, read_setting, read_table
from mindllm_engine.tuning.selection import Pool, SelectConfig, Selection, choose
from mindllm_engine.tuning.selection_report import write_report

# The key under which a chosen record says where it comes from.
PLACE = "selected_from"


def select(config: SelectConfig) -> Selection:
    """Choose, and write the choices and the report into `config.out`.

    Raises:
        MindLLMError: scores or records that cannot be used, no cluster of the wanted size, `out` cannot be written.
    """
    config.validate()
    setting = read_setting(Path(config.scores))
    before = config.pretraining_entropy
    selection = choose(config, read_pool(config), pretraining_entropy(setting) if before is None else before)
    out = Path(config.out)
    staged = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        _write_choices(staged, selection, setting)
        write_report(staged, config, selection)
        staged.rename(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); check its folder and free space") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return selection


def pretraining_entropy(setting: dict[str, Any]) -> float:
    """The last held-out loss of the scored run up to its checkpoint, nats a token. Raises DataError if it has none."""
    step = step_of(Path(setting["checkpoint"]))
    run = Path(setting["run"])
    losses = [r["heldout_loss"] for r in read_metrics(run) if r["step"] <= step and r.get("heldout_loss") is not None]
    if not losses:
        raise DataError(f"{run / METRICS_FILE}: has no held-out loss up to step {step}; give pretraining_entropy")
    return float(losses[-1])


def read_pool(config: SelectConfig) -> Pool:
    """The scored records. Raises DataError where the scores are not complete, or the file is damaged."""
    path = Path(config.scores) / SCORES_FILE
    table = read_table(path)
    try:
        columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
        rows = np.flatnonzero(~np.isnan(columns["response_entropy"]))
    except KeyError as error:
        raise DataError(f"{path}: damaged (no column {error}); delete it and score again") from error
    without = np.setdiff1d(np.arange(len(table)), rows)
    kinds, counts = np.unique(columns["status"][without].astype(str), return_counts=True)
    columns = {name: column[rows] for name, column in columns.items()}
    entropy = columns[f"{config.entropy}_entropy"]
    return Pool(rows, entropy, columns, dict(zip(kinds.tolist(), counts.tolist(), strict=True)))


def _write_choices(folder: Path, selection: Selection, setting: dict[str, Any]) -> None:
    rows = selection.pool.rows
    union = np.unique(np.concatenate(list(selection.choices.values())))
    lines = _chosen_lines(setting, {int(row) for row in rows[union]})
    for name, chosen in selection.choices.items():
        write_atomically(folder / f"{name}.jsonl", b"".join(lines[row] for row in rows[chosen].tolist()))


def _chosen_lines(setting: dict[str, Any], wanted: set[int]) -> dict[int, bytes]:
    """The lines of these rows, each with its place."""
    lines: dict[int, bytes] = {}
    row = 0
    for file in setting["files"]:
        path = Path(file["path"])
        try:
            unchanged = file_hash(path) == file["hash"]
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}), and was scored; put it back") from error
        if not unchanged:
            raise DataError(f"{path}: has changed since it was scored; score it again")
        for number, line in read_lines(path):
            if row in wanted:
                lines[row] = with_place(line, f"{path.name}:{number}")
            row += 1
    return lines


def with_place(line: bytes, place: str) -> bytes:
    """A record's line, byte for byte, with its place added; one that has a place already keeps it."""
    line = line.strip()
    if PLACE in orjson.loads(line):
        return line + b"\n"
    return line[:-1].rstrip() + b', "' + PLACE.encode() + b'": ' + orjson.dumps(place) + b"}\n"
