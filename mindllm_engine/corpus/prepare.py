"""From the `corpus` section of a config to token files: train the tokenizer, or extend that of another run, and
tokenize every source, once."""

import glob
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from mindllm_engine.corpus.balanced_sample import SampledSource, balanced_sample
from mindllm_engine.corpus.extend_tokenizer import extend_tokenizer
from mindllm_engine.corpus.open_tokenizer import TextTokenizer, first_changed_id, open_tokenizer
from mindllm_engine.corpus.readers import OnBadRecord, expand_paths
from mindllm_engine.corpus.special_tokens import EMAIL, SPECIAL_TOKENS
from mindllm_engine.corpus.tokenize import TokenizedSource, check_source_name, tokenize_source
from mindllm_engine.corpus.tokenizer import train_tokenizer
from mindllm_engine.data.atomic_files import exclusive_lock
from mindllm_engine.errors import ConfigError, DataError

DEFAULT_DATA_DIR = "../shared/data"
"""What ${MINDLLM_DATA} stands for where it is not set."""

TOKENS_FOLDER = "tokens"
"""Where in the corpus folder the token files lie."""

_TOKENIZER_SEED = 0


@dataclass
class SourceText:
    """The raw text of one source."""

    path: str
    """Glob of .jsonl, .json (one record a line), .jsonl.gz, .jsonl.zst or .parquet files. `~` and environment variables
    such as ${MINDLLM_DATA} are expanded."""
    lang: str
    """The language, such as zh or en; the tokenizer is trained on equal parts of each."""
    category: str
    """The kind of text, such as book or code; plans with the order `blocked` go by it."""


@dataclass
class CorpusConfig:
    """Raw text, and how it becomes token files."""

    dir: str
    """Folder for the tokenizer and the token files. `~` and environment variables are expanded."""
    sources: dict[str, SourceText]
    """The sources by name; mixture plans and metrics call them by it."""
    tokenizer_vocab_size: int
    """Ids of the tokenizer, which is trained, or extended to so many, if the folder has none. Below 65,500 a stored id
    takes 2 bytes, from there on 4."""
    tokenizer_train_bytes: int
    """Bytes of text to train the tokenizer on, in equal parts from each language and source. Training takes about 20
    bytes of memory for each."""
    holdout: float
    """Share of the documents to keep from training for validation, from 0 to below 1."""
    tokenizer_special_tokens: bool = False
    """Give a tokenizer that is trained here the special tokens of personal data and of chats (docs/tokenizers.md), as
    text from tools/build_corpus.py and tuning want them."""
    tokenizer_base: str | None = None
    """For the transfer to Chinese: the tokenizer that is extended by Chinese pieces (docs/tokenizers.md), learned from
    the sources of `lang: zh`, instead of training one: a tokenizer file, or the run folder of run.init_from. Its ids
    stay, so that the run's embeddings keep their meaning."""
    text_field: str = "text"
    """The field or column of a record that holds its text."""
    on_bad_record: OnBadRecord = "skip"
    """Skip counts records that are malformed or have no text, by reason; error stops at the first."""
    sample_seed: int | None = None
    """If given, and there is no text of any source yet, the sample corpus made from this seed is written to the folder
    where the sources expect theirs."""


@dataclass
class PreparedCorpus:
    """Where a prepared corpus lies."""

    tokenizer: Path
    """The tokenizer: a SentencePiece model, or a tokenizer.json under its name where such a one was extended."""
    sources: dict[str, str]
    """Name -> prefix of the token file of each source, in the config's order."""
    heldout: dict[str, str]
    """The same of the held-out documents, without the sources that have none."""


def prepare_corpus(config: CorpusConfig) -> PreparedCorpus:
    """Make the tokenizer `<dir>/tokenizer.model` if there is none, tokenize every source into `<dir>/tokens/`.

    Returns at once if all is done. Safe for several processes at once, also on several nodes where the file system has
    locks: the first works, the others wait and find it done. What was done before a stop is not done again.

    Raises ConfigError for an impossible value, and DataError if text is missing or unfit, or if the folder holds a
    tokenizer or a source made with other settings.
    """
    _check(config)
    folder = Path(expand_path(config.dir))

    def on_wait() -> None:
        _say(f"another process is preparing {folder}; waiting for it")

    with exclusive_lock(folder / ".lock", on_wait):
        if config.sample_seed is not None:
            _write_sample_if_absent(config.sources, config.sample_seed)
        path = tokenizer_path(config)
        if path.exists():
            _check_tokenizer(path, config)
        elif config.tokenizer_base is None:
            _train_tokenizer(path, config)
        else:
            _extend_tokenizer(path, config, config.tokenizer_base)
        tokenizer = open_tokenizer(path)
        done = [_tokenize(name, source, tokenizer, config) for name, source in config.sources.items()]
    return PreparedCorpus(
        path,
        {source.name: source.train_prefix for source in done},
        {source.name: source.heldout_prefix for source in done if source.heldout_prefix is not None},
    )


def tokenizer_path(config: CorpusConfig) -> Path:
    """Where `prepare_corpus` writes the tokenizer, or has written it."""
    return Path(expand_path(config.dir)) / "tokenizer.model"


def token_prefixes(config: CorpusConfig) -> dict[str, str]:
    """Name -> prefix at which `prepare_corpus` writes the token file of each source, or has written it."""
    return {name: f"{Path(expand_path(config.dir)) / TOKENS_FOLDER / name}" for name in config.sources}


def expand_path(path: str) -> str:
    """Expand `~` and environment variables; MINDLLM_DATA has a default. ConfigError for a variable that is not set."""
    if "MINDLLM_DATA" not in os.environ:
        path = re.sub(r"\$(\{MINDLLM_DATA\}|MINDLLM_DATA\b)", DEFAULT_DATA_DIR, path)
    expanded = os.path.expanduser(os.path.expandvars(path))
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise ConfigError(f"path '{path}': the environment variable {unset[1]} is not set")
    return expanded


def _check(config: CorpusConfig) -> None:
    if not config.sources:
        raise ConfigError("corpus.sources is empty; name one source at least")
    for name in config.sources:
        check_source_name(name)
    if config.tokenizer_vocab_size < 1:
        raise ConfigError(f"corpus.tokenizer_vocab_size is {config.tokenizer_vocab_size}; it must be positive")
    if config.tokenizer_train_bytes < 1:
        raise ConfigError(f"corpus.tokenizer_train_bytes is {config.tokenizer_train_bytes}; it must be positive")
    if not 0 <= config.holdout < 1:
        raise ConfigError(f"corpus.holdout is {config.holdout}; it is a share, from 0 to below 1")


def _write_sample_if_absent(sources: dict[str, SourceText], seed: int) -> None:
    patterns = [expand_path(source.path) for source in sources.values()]
    if any(glob.glob(pattern) for pattern in patterns):
        return
    from mindllm_engine.corpus.sample import write_sample_corpus

    folders = {os.path.dirname(pattern) for pattern in patterns}
    if len(folders) > 1:
        raise ConfigError(
            f"corpus.sample_seed: the sources lie in {', '.join(sorted(folders))}; put them in one folder"
        )
    folder = Path(folders.pop())
    if folder.exists():
        raise ConfigError(f"corpus.sample_seed: {folder} exists, but has no text of the sources; check their paths")
    _say(f"writing a sample corpus to {folder}")
    # Under another name first, so that a folder of that name is a complete sample.
    staged = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(staged, ignore_errors=True)
    write_sample_corpus(staged, seed)
    staged.rename(folder)


def _check_tokenizer(path: Path, config: CorpusConfig) -> None:
    tokenizer = open_tokenizer(path)
    found = tokenizer.vocab_size
    if found != config.tokenizer_vocab_size:
        raise ConfigError(
            f"{path}: has {found} ids, but corpus.tokenizer_vocab_size is {config.tokenizer_vocab_size}; set it to "
            f"{found}, or choose another corpus.dir"
        )
    if config.tokenizer_special_tokens:
        try:
            tokenizer.special_id(EMAIL)
        except DataError as error:
            raise ConfigError(
                f"{path}: was trained without corpus.tokenizer_special_tokens; set that to false, or choose another "
                "corpus.dir"
            ) from error
    if config.tokenizer_base is not None:
        base = open_tokenizer(tokenizer_file(config.tokenizer_base))
        if (changed := first_changed_id(tokenizer, base)) is not None:
            raise ConfigError(
                f"{path}: does not extend corpus.tokenizer_base = {config.tokenizer_base}: id {changed} differs; "
                "choose another corpus.dir"
            )


def tokenizer_file(path: str) -> Path:
    """The tokenizer of a run folder; any other path as it is, `~` and environment variables expanded."""
    file = Path(expand_path(path))
    return file / "tokenizer.model" if (file / "tokenizer.model").is_file() else file


def _extend_tokenizer(path: Path, config: CorpusConfig, base_path: str) -> None:
    file = tokenizer_file(base_path)
    base = open_tokenizer(file)
    pieces = config.tokenizer_vocab_size - base.vocab_size
    if config.tokenizer_special_tokens:
        pieces -= sum(not _has_special(base, token) for token in SPECIAL_TOKENS)
    if pieces < 1:
        raise ConfigError(
            f"corpus.tokenizer_vocab_size: {config.tokenizer_vocab_size} leaves no room for new pieces beside the "
            f"{base.vocab_size} of {file}; raise it"
        )
    sources = [source for source in _sampled(config) if source.lang == "zh"]
    if not sources:
        raise ConfigError("corpus.tokenizer_base: no source has lang: zh to learn Chinese pieces from")
    _say(f"extending {file} by {pieces} pieces on {config.tokenizer_train_bytes / 1e6:,.1f} MB")
    sample = balanced_sample(sources, config.tokenizer_train_bytes, _TOKENIZER_SEED, config.text_field)
    extend_tokenizer(file, sample, pieces, path, config.tokenizer_special_tokens)


def _has_special(tokenizer: TextTokenizer, token: str) -> bool:
    try:
        tokenizer.special_id(token)
    except DataError:
        return False
    return True


def _sampled(config: CorpusConfig) -> list[SampledSource]:
    return [
        SampledSource(name, source.lang, expand_paths(expand_path(source.path)))
        for name, source in config.sources.items()
    ]


def _train_tokenizer(path: Path, config: CorpusConfig) -> None:
    _say(f"training a tokenizer of {config.tokenizer_vocab_size} ids on {config.tokenizer_train_bytes / 1e6:,.1f} MB")
    sample = balanced_sample(_sampled(config), config.tokenizer_train_bytes, _TOKENIZER_SEED, config.text_field)
    train_tokenizer(sample, config.tokenizer_vocab_size, path, config.tokenizer_special_tokens)


def _tokenize(name: str, source: SourceText, tokenizer: TextTokenizer, config: CorpusConfig) -> TokenizedSource:
    tokenized = tokenize_source(
        expand_path(source.path),
        tokenizer.model_path.parent / TOKENS_FOLDER,
        name=name,
        lang=source.lang,
        category=source.category,
        tokenizer=tokenizer,
        holdout=config.holdout,
        text_field=config.text_field,
        on_bad_record=config.on_bad_record,
    )
    if not tokenized.up_to_date:
        _say(tokenized.summary())
    return tokenized


def _say(line: str) -> None:
    print(f"corpus: {line}", file=sys.stderr, flush=True)
