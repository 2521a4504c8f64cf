"""From rows to samples: cold, against the bare tokenizer and against TRL's preparation; and from the warm store.

Same rows, same tokenizer (Qwen3), assistant masks on both sides. Ratios are of figures measured in one run.
"""

import argparse
import gc
import multiprocessing
import os
import statistics
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dist_sft.chat.encode import Encoder
from dist_sft.config.data import DataSection, LossWeights, Source
from dist_sft.data.encoding import Rows
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model.tokenizer import load_tokenizer, vocabulary_of
from tools.benchmarks.chats import write_chats
from tools.benchmarks.measure import WORK, heading, took
from tools.benchmarks.trl_peer import prepare
from tools.registry import tokenizer_folder

BATCH = 64
"""Rows at a time: what the service sends to an encoder."""
CONTEXT = 32_768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--skip-trl", action="store_true")
    asked = parser.parse_args()
    heading()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process, one core
    file = write_chats(WORK / f"chats-{asked.rows}.jsonl", asked.rows)
    with TemporaryDirectory(dir=WORK) as folder:
        cache = Path(folder)
        tokens = against_the_tokenizer(file, cache / "alone")
        from_the_warm_store(file, cache / "alone")
        ours = in_processes(file, asked.processes, cache / "together")
        if not asked.skip_trl:
            against_trl(file, asked.processes, ours, tokens)


def opened(file: Path, cache: Path) -> Rows:
    vocabulary = vocabulary_of(load_tokenizer(str(tokenizer_folder("qwen3"))))
    encoder = Encoder(vocabulary, "auto", LossWeights(), CONTEXT, "drop")
    sources = (Source(path=str(file), format="messages"),)
    rows = Rows(sources, DataSection(sources=sources, cache=str(cache), context_length=CONTEXT), encoder)
    gc.freeze()  # as an encoder of the service does
    return rows


def batches(begin: int, end: int) -> list[list[SampleId]]:
    ids = [SampleId(row, 0, row) for row in range(begin, end)]
    return [ids[i : i + BATCH] for i in range(0, len(ids), BATCH)]


def against_the_tokenizer(file: Path, cache: Path) -> int:
    """File -> samples in the store, batch by batch in turn with encode_batch_fast on texts that are at hand."""
    from tokenizers import Tokenizer

    rows = opened(file, cache)
    bare = Tokenizer.from_str(rows.encoder.vocabulary.backend)
    ratios, tokens, ours_took, bare_took = [], 0, 0.0, 0.0
    for ids in batches(0, rows.lengths[0]):
        texts = [rows.encoder.render(rows.parse(id_)) for id_ in ids]
        bare_time, _ = took(lambda texts=texts: bare.encode_batch_fast(texts, add_special_tokens=False))
        ours_time, samples = took(lambda ids=ids: rows.encode(0, ids).samples)
        tokens += sum(len(sample) for sample in samples)
        ratios.append(bare_time.cpu / ours_time.cpu)
        ours_took, bare_took = ours_took + ours_time.cpu, bare_took + bare_time.cpu
    count = rows.lengths[0]
    assert rows.encoded == count, "the store was not cold"
    for store in rows.stores.values():
        store.close()
    print(f"{count:,} rows, {tokens / count:.0f} tokens each")
    print(f"cold, one process: {tokens / ours_took:,.0f} tokens per CPU-second, {count / ours_took:,.0f} rows")
    print(f"encode_batch_fast: {tokens / bare_took:,.0f} tokens per CPU-second, {count / bare_took:,.0f} rows")
    print(f"  -> {bare_took / ours_took:.2f} of encode_batch_fast (median of batches {statistics.median(ratios):.2f})")
    return tokens


def from_the_warm_store(file: Path, cache: Path) -> None:
    """The same rows again, by another start of the process's data: samples, and packs of them."""
    rows = opened(file, cache)
    for name in ("first pass, pages mapped as it goes", "second pass"):
        tokens, samples_took, packs_took = 0, 0.0, 0.0
        for ids in batches(0, rows.lengths[0]):
            time, samples = took(lambda ids=ids: rows.encode(0, ids).samples)
            samples_took += time.cpu
            time, pack = took(lambda ids=ids, samples=samples: build_pack(ids, samples))
            packs_took += time.cpu
            tokens += len(pack.tokens)
        print(f"warm store, {name}: {tokens / samples_took / 1e6:.0f} M tokens per CPU-second, ", end="")
        print(f"{tokens / (samples_took + packs_took) / 1e6:.0f} M with packs built")
    assert rows.encoded == 0, "the store was not warm"


def in_processes(file: Path, processes: int, cache: Path) -> float:
    """Rows per second of several processes, each with its part of the rows."""
    opened(file, cache)  # the line index is made once
    context = multiprocessing.get_context("spawn")
    count = opened(file, cache).lengths[0]
    edges = [count * i // processes for i in range(processes + 1)]
    ready, go = context.Barrier(processes + 1), context.Barrier(processes + 1)
    workers = [
        context.Process(target=_part, args=(file, cache, begin, end, ready, go)) for begin, end in pairwise(edges)
    ]
    for worker in workers:
        worker.start()
    ready.wait()

    def run() -> None:
        go.wait()
        for worker in workers:
            worker.join()

    time, _ = took(run)
    assert not any(worker.exitcode for worker in workers)
    print(f"cold, {processes} processes: {count / time.wall:,.0f} rows per second")
    return count / time.wall


def _part(file: Path, cache: Path, begin: int, end: int, ready: Any, go: Any) -> None:
    rows = opened(file, cache)
    ready.wait()
    go.wait()
    for ids in batches(begin, end):
        rows.encode(0, ids)
    assert rows.encoded == end - begin


def against_trl(file: Path, processes: int, ours: float, tokens: int) -> None:
    """What SFTTrainer does to the same rows, its loading of the file not counted."""
    time, _, rows, theirs = prepare(file, processes)
    print(f"TRL, {processes} processes: {rows / time.wall:,.0f} rows per second ({theirs / tokens:.3f} of our tokens)")
    print(f"  -> {ours * time.wall / rows:.2f} times TRL")


if __name__ == "__main__":
    main()
