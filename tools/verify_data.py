"""Check token files for damage: `python tools/verify_data.py --sources data/tokens [--tokenizer tokenizer.model]`."""

import os
import sys
import time
from collections import defaultdict
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mindllm_engine.command_line import USER_ERROR_EXIT_CODE, parse_arguments, printable, run_tool
from mindllm_engine.corpus.open_tokenizer import open_tokenizer
from mindllm_engine.data.byte_progress import ByteProgress
from mindllm_engine.data.manifest import Manifest
from mindllm_engine.data.verification import Verified, bytes_of, find_token_files, verify_token_files
from mindllm_engine.errors import ConfigError


@dataclass
class VerifyArguments:
    """Read every byte of token files and compare it with their manifests."""

    sources: str | list[str]
    """A folder of token files, or the prefix of one (its path without .bin); for several, a list:
    '["data/tokens", "other/web"]'."""
    tokenizer: str | None = None
    """The SentencePiece model that the files must have been made with; not checked by default."""
    workers: int | None = None
    """Threads; one a core by default. The result does not depend on it."""


def main() -> None:
    """Verify the files, print a table of them, and leave with 2 and a line for each damage."""
    arguments = parse_arguments(VerifyArguments, "Check token files: index, checksums, counts, ids.")
    workers = arguments.workers if arguments.workers is not None else os.cpu_count() or 1
    if workers < 1:
        raise ConfigError(f"workers: {workers} is no number of threads; give 1 or more")
    tokenizer_hash = open_tokenizer(arguments.tokenizer).hash if arguments.tokenizer else None
    sources = [arguments.sources] if isinstance(arguments.sources, str) else arguments.sources
    prefixes = find_token_files(sources)
    total_bytes = sum(bytes_of(prefix) for prefix in prefixes)
    start = time.monotonic()
    with ByteProgress("verifying", total_bytes) as progress:
        verified = list(verify_token_files(prefixes, tokenizer_hash, workers, progress.show))
    seconds = time.monotonic() - start

    console = Console(width=120 if not Console().is_terminal else None)
    console.print(table(verified))
    console.print(
        f"{total_bytes / 1e9:,.2f} GB in {seconds:.1f} s, {total_bytes / 1e9 / max(seconds, 1e-9):.2f} GB/s",
        highlight=False,
    )
    damages = [damage for file in verified for damage in file.damages]
    for damage in damages:
        print(f"error: {printable(str(damage))}", file=sys.stderr, flush=True)
    if damages:
        sys.exit(USER_ERROR_EXIT_CODE)


def table(verified: list[Verified]) -> Table:
    """A row for each file, then the totals of the sound ones by language and category."""
    sound = [file.manifest for file in verified if file.manifest is not None and not file.damages]
    rows = Table(title=f"{len(sound)} of {len(verified)} token files are sound", caption="totals: of sound files only")
    for title in ("source", "language", "category"):
        rows.add_column(title, overflow="fold")
    for title in ("documents", "tokens", "text bytes"):
        rows.add_column(title, justify="right")
    rows.add_column("result")
    for file in verified:
        facts = file.manifest
        numbers = counts([facts]) if facts else ["?"] * 3
        kind = [facts.lang, facts.category] if facts else ["?"] * 2
        result = "damaged" if file.damages else "sound"
        rows.add_row(
            *map(Text, (printable(file.prefix.name), *kind, *numbers, result))
        )  # Text: a name may look like markup
    for by_category in (False, True):
        rows.add_section()
        groups: dict[tuple[str, str], list[Manifest]] = defaultdict(list)
        for facts in sound:
            groups[facts.lang, facts.category if by_category else "all"].append(facts)
        for kind, members in sorted(groups.items()):
            rows.add_row(*map(Text, ("total", *kind, *counts(members), "")))
    return rows


def counts(manifests: list[Manifest]) -> list[str]:
    """Documents, tokens and text bytes of these files together."""
    return [f"{sum(getattr(facts, name) for facts in manifests):,}" for name in ("documents", "tokens", "text_bytes")]


if __name__ == "__main__":
    run_tool(main)
