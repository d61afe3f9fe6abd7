"""The state of a plan for checkpoints: everything that decides the order of samples, its hash, and what has changed.

Sources go by name, and only those that some block reads are held, so that neither their order in a configuration nor
sources that nothing reads matter.
"""

from typing import Any

import orjson
import xxhash

from mindllm_engine.data.mixture import Block
from mindllm_engine.data.shares import SourceFacts

ADDRESSING_VERSION = 2
"""Raised whenever the same plan would give another order of samples."""


def plan_state(seed: int, packing: str, sources: list[SourceFacts], blocks: list[Block]) -> dict[str, Any]:
    """A plan as JSON can hold it."""
    used = sorted(
        (source for number, source in enumerate(sources) if any(block.quotas[number] for block in blocks)),
        key=lambda source: source.name,
    )
    fields = ("language", "category", "tokens", "documents", "content")
    return {
        "version": ADDRESSING_VERSION,
        "seed": seed,
        "packing": packing,
        "sources": {source.name: {field: getattr(source, field) for field in fields} for source in used},
        "blocks": [_block_state(block, [source.name for source in sources]) for block in blocks],
    }


def state_hash(state: dict[str, Any]) -> str:
    """The xxh3_64 of a state as JSON with sorted keys, 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(orjson.dumps(state, option=orjson.OPT_SORT_KEYS))


def first_change(saved: dict[str, Any], now: dict[str, Any], next_sample: int) -> str | None:
    """What differs between two states in the samples before `next_sample`, in one line; None if nothing does.

    Blocks that had not begun may be edited, removed or appended, and sources that no begun block reads may come, go or
    change. A begun block must stay what it was to its end: its permutation depends on its size.
    """
    if next_sample <= 0:
        return None
    try:
        return _first_change(saved, now, next_sample)
    except (AttributeError, KeyError, TypeError):
        return "the saved plan is incomplete"


def _first_change(saved: dict[str, Any], now: dict[str, Any], next_sample: int) -> str | None:
    if saved.get("version") != now["version"]:
        return (
            f"version of the addressing was {saved.get('version', 1)} and is {now['version']}, which orders samples in "
            "another way; finish the run with the release that began it"
        )
    for key in ("seed", "packing"):
        if saved[key] != now[key]:
            return f"{key} was {saved[key]} and is {now[key]}"
    begun = [number for number, block in enumerate(saved["blocks"]) if block["first_sample"] < next_sample]
    for number in begun:
        if number >= len(now["blocks"]):
            return f"block {number} has begun and is gone"
        for name in saved["blocks"][number]["quotas"]:
            was = saved["sources"][name]
            change = _source_change(was, now["sources"].get(name, was))  # one that is gone shows in the quotas
            if change:
                return f"source {name}, read by block {number}: {change}"
    for number in begun:
        change = _block_change(saved["blocks"][number], now["blocks"][number])
        if change:
            return f"block {number} has begun, and its {change}"
    return None


def _source_change(was: dict[str, Any], now: dict[str, Any]) -> str | None:
    if was["content"] != now["content"]:
        return f"its content has changed (its hash was {was['content']} and is {now['content']})"
    return next((f"{key} was {was[key]} and is {now[key]}" for key in was if was[key] != now[key]), None)


def _block_change(was: dict[str, Any], now: dict[str, Any]) -> str | None:
    for key in was:
        if isinstance(was[key], dict):
            for name in sorted(was[key].keys() | now[key].keys()):
                before, after = was[key].get(name, 0), now[key].get(name, 0)
                if before != after:
                    return f"{key.removesuffix('s')} of {name} was {before:,} and is {after:,}"
        elif was[key] != now[key]:
            return f"{key} was {was[key]} and is {now[key]}"
    return None


def _block_state(block: Block, names: list[str]) -> dict[str, Any]:
    used = sorted((number for number, quota in enumerate(block.quotas) if quota), key=names.__getitem__)
    return {
        "first_sample": block.first_sample,
        "seq_len": block.seq_len,
        "order": block.order,
        "samples_per_chunk": block.samples_per_chunk if block.order == "chunked" else None,
        "key": str(block.key),  # beyond what JSON's numbers hold elsewhere
        "quotas": {names[number]: block.quotas[number] for number in used},
        "firsts": {names[number]: block.firsts[number] for number in used},
        "categories": [[names[number] for number in category] for category in block.categories],
    }
