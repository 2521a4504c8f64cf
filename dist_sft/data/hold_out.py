"""Which rows are held out of training: all rows of a share of the questions.

rows ─ parse ─> question ─ normalised ─> uint64[N] hashes ─ share ─> rows that are held out

A question is held out for what it says: not for where its rows lie, nor by the seed, the order or the mixture. So equal
questions of all sources fall on one side, in this run and in every other; and a larger share holds out what a smaller
one does, and more. A row that cannot be read is not held out: it is met in training, where the ledger accounts for it.

The hashes of a source are kept in the cache: it is read whole once.
"""

import hashlib
import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_sft.chat.conversation import Conversation, Document
from dist_sft.core.errors import DataError, RowError
from dist_sft.core.files import stable_hash
from dist_sft.data.encoding import Rows, code_fingerprint
from dist_sft.data.ledger import HELD_OUT, Entry
from dist_sft.data.readers import kept

VERSION = 1
"""Of how a question is normalised and hashed."""
DOCUMENT = 200
"""Characters that a document is known by, once it is normalised."""
UNREADABLE = np.uint64(2**64 - 1)
"""In place of the hash of a row that is none. No share is so large that it would be held out."""


@dataclass(frozen=True)
class HoldOut:
    """What is held out of each source: int64[H] rows, ascending. of: how many rows each has."""

    rows: tuple[NDArray[np.int64], ...] = ()
    of: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return sum(map(len, self.rows))

    @property
    def fingerprint(self) -> str:
        return stable_hash([hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() for rows in self.rows])

    def entries(self, names: list[str]) -> list[Entry]:
        """For the ledger: one of each source that has such rows. names: of the sources."""
        return [
            Entry(0, 0, name, HELD_OUT, f"{len(rows)} of {of} rows are held out, by eval.share", rows=len(rows))
            for name, rows, of in zip(names, self.rows, self.of, strict=False)  # of none without a share
            if len(rows)
        ]


def hold_out(rows: Rows, share: float) -> HoldOut:
    """The rows of this share of the questions. Raises DataError where that is none."""
    limit = np.uint64(int(share * 2**64))
    found = HoldOut(
        tuple(np.flatnonzero(hashes(rows, source) < limit) for source in range(len(rows.sources))), rows.lengths
    )
    if not found.count:
        raise DataError(
            f"eval.share is {share:g}, and holds out none of {sum(found.of)} rows: rows of one question stay together",
            where="eval.share",
            fix="raise it, or give held-out rows by eval.sources",
        )
    return found


def hashes(rows: Rows, source: int) -> NDArray[np.uint64]:
    """uint64[N]: of each row's question; UNREADABLE for those that cannot be read."""
    decides = [rows.sources[source].fingerprint, rows.layouts[source], dict(rows.data.role_names), code_fingerprint()]
    key = stable_hash([*decides, unicodedata.unidata_version, VERSION])[:40]
    path = rows.cache / "questions" / f"{key}.npz" if rows.cache else None
    if path and (known := kept.load(path)) and len(known.get("hashes", ())) == len(rows.sources[source]):
        return known["hashes"].view(np.uint64)
    found = np.fromiter(
        (UNREADABLE if isinstance(item, RowError) else hash_of(item) for item in rows.items(source)),
        np.uint64,
        len(rows.sources[source]),
    )
    if path:
        kept.save(path, {"hashes": found.view(np.int64)})
    return found


def hash_of(item: Conversation | Document) -> int:
    """Equal for equal questions."""
    return int.from_bytes(hashlib.blake2b(question(item).encode(), digest_size=8).digest(), "little")


def question(item: Conversation | Document) -> str:
    """What a row asks, normalised: its first user message; of a document, how it begins.

    Where nobody asks, as in a chat of the assistant alone, all that is said.
    """
    if isinstance(item, Document):
        return normalised(item.text)[:DOCUMENT]
    asked = next((message.content for message in item.messages if message.role == "user"), "")
    return normalised(asked) or normalised("\n".join(message.content for message in item.messages))


def normalised(text: str) -> str:
    """Without what two copies of one text may differ in: case, white space, how a letter is put together (NFKC)."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())
