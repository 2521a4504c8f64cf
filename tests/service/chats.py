"""Chats whose tokens anyone can work out: one id for each byte, two control tokens, ChatML."""

import hashlib
import json

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dist_sft.chat.encode import Encoder
from dist_sft.chat.vocabulary import Vocabulary
from dist_sft.config.data import DataSection, LossWeights, OrderSection, Source
from dist_sft.data.arrange import order_of, streams_of
from dist_sft.data.encoding import Rows
from dist_sft.data.order import Steps
from dist_sft.service.messages import Feed

CONTEXT = 120
SEED = 7
PER_STEP = 10


def vocabulary():
    """Id b for byte b; 256 and 257 begin and end a turn."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    ids = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    return Vocabulary(tokenizer.to_str(), None, {"eos_token": "<|im_end|>"}, 258)


def number(*what):
    """A number that is the same for ever."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=4).digest(), "big")


def line(file, row):
    """A chat; now and then one that cannot be learned: over-long, empty, no JSON, nothing to learn."""
    if number("bad", file, row) % 9 == 0:
        return ["{", '{"messages": [{"role": "user", "content": "alone"}]}', '{"text": 3}'][row % 3]
    words = "ab" * (number("long", file, row) % 50)
    turns = [{"role": "user", "content": f"{file}:{row}?"}, {"role": "assistant", "content": f"{row} {words}é"}]
    if row % 4 == 0:
        turns += [{"role": "user", "content": "more"}, {"role": "assistant", "content": words[: row % 30] + "."}]
    return json.dumps({"messages": turns}, ensure_ascii=False)


def write(folder, counts=(37, 24, 9)):
    """Files of so many chats; the last two hold an equal row."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"part-{index}.jsonl" for index in range(len(counts))]
    for index, (file, count) in enumerate(zip(files, counts, strict=True)):
        rows = [line(index, row) for row in range(count)]
        if index:
            rows[-1] = line("shared", 1)
        file.write_text("".join(row + "\n" for row in rows))
    return files


def feed(files, steps=None, weights=None, cache=None, per_step=PER_STEP, epochs=None, order=None, schedule=()):
    """Rows of these files and their steps."""
    sources = [Source(path=str(file), format="messages", weight=weights and weights[i]) for i, file in enumerate(files)]
    data = DataSection(
        sources=sources, context_length=CONTEXT, bad_rows="drop", max_bad_share=1.0, cache=cache and str(cache),
        order=order or OrderSection(), schedule=schedule,
    )  # fmt: skip
    encoder = Encoder(vocabulary(), "chatml", LossWeights(), CONTEXT, "drop")
    rows = Rows(data.sources, data, encoder)
    streams = streams_of(data, rows.sources, SEED)
    run_order = order_of(data, streams, per_step, lambda: rows.first_lengths(streams))
    return Feed(rows, Steps.of(run_order, per_step, steps, epochs))


def described(files, steps, weights=None, per_step=PER_STEP):
    """The same run for the oracle."""
    ids = {"<|im_start|>": 256, "<|im_end|>": 257}
    return {
        "files": [str(file) for file in files], "weights": weights, "seed": SEED, "per_step": per_step,
        "steps": steps, "context": CONTEXT, "vocab": ids,
    }  # fmt: skip


def delivered(parts):
    """The hash of each step from the shares of all its ranks, and the positions of its samples.

    parts: by rank, a list of shares.
    """
    out = {}
    for shares in zip(*parts, strict=True):
        found = []
        for share in shares:
            for pack in share.packs:
                ends = pack.cu_seqlens.tolist()
                for i, id_ in enumerate(pack.samples):
                    part = slice(ends[i], ends[i + 1])
                    found.append((id_, pack.tokens[part], pack.weights[part]))
        digest = hashlib.sha256()
        for id_, tokens, weights in sorted(found, key=lambda one: one[0].position):
            digest.update(f"{id_.position},{id_.source},{id_.row},{len(tokens)};".encode())
            digest.update(tokens.tobytes() + weights.tobytes())
        assert len({share.step for share in shares}) == 1
        assert len({len(share.packs) for share in shares}) == 1
        assert len({share.totals for share in shares}) == 1
        step = shares[0].step
        assert step not in out
        out[step] = (digest.hexdigest(), [one[0] for one in found])
    return out
