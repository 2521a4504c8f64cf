"""What the store gives is the right sample or nothing: torn, flipped, evicted, stale and shared shards."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_sft.chat.conversation import EncodedSample
from dist_sft.chat.encode import Encoder
from dist_sft.config.data import DataSection, LossWeights, Source
from dist_sft.core.errors import DataError, RowError
from dist_sft.data import token_store
from dist_sft.data.encoding import Layout, Rows
from dist_sft.data.order import SampleId
from dist_sft.data.token_store import TokenStore, digest_of
from tests.service import chats

ROWS = 40


def sample(number, length=None):
    length = number % 7 + 1 if length is None else length
    weights = np.arange(length, dtype=np.float32) / 8
    return EncodedSample(np.arange(number, number + length, dtype=np.int32), weights, number % 3, number % 2)


def digests(numbers):
    return [digest_of(str(number).encode()) for number in numbers]


def same(found, expected):
    return (
        isinstance(found, EncodedSample)
        and np.array_equal(found.tokens, expected.tokens)
        and np.array_equal(found.weights, expected.weights)
        and (found.cut, found.lost) == (expected.cut, expected.lost)
    )


def filled(folder, numbers=range(ROWS), limit=1 << 30):
    """A store that a process has written and closed."""
    store = TokenStore(folder, "n", limit)
    store.rows("f", 800).add(list(numbers), digests(numbers), [sample(number) for number in numbers])
    store.close()
    return store


def shards(folder):
    return sorted(folder.glob("*/*.tokens"))


def test_what_was_written_is_read_by_number_and_by_content(tmp_path):
    filled(tmp_path)
    rows = TokenStore(tmp_path, "n", 1 << 30).rows("f", 800)
    assert all(same(found, sample(i)) for i, found in enumerate(rows.read(range(ROWS))))
    moved = TokenStore(tmp_path, "n", 1 << 30).rows("another file", 3)
    assert moved.read([0, 1, 2]) == [None] * 3
    assert [
        same(found, sample(i)) for i, found in zip((5, 7, 9), moved.find([0, 1, 2], digests((5, 7, 9))), strict=True)
    ]
    assert all(same(found, sample(i)) for i, found in zip((5, 7, 9), moved.read([0, 1, 2]), strict=True))
    assert moved.find([0], digests([ROWS + 1])) == [None]


def test_an_error_is_kept_as_one(tmp_path):
    error = RowError("no é answer", reason="empty_answer", where="messages[1]", fix="mend it", lost=3)
    store = TokenStore(tmp_path, "n", 1 << 30)
    store.rows("f", 800).add([0], digests([0]), [error])
    store.close()
    (found,) = TokenStore(tmp_path, "n", 1 << 30).rows("f", 800).read([0])
    assert isinstance(found, RowError)
    assert (str(found), found.reason, found.lost) == (str(error), "empty_answer", 3)


def test_the_writer_reads_what_it_has_not_flushed_and_another_process_what_it_has_sealed(tmp_path):
    store = TokenStore(tmp_path, "n", 1 << 30)
    rows = store.rows("f", 800)
    rows.add([3], digests([3]), [sample(3)])
    assert same(rows.read([3])[0], sample(3)) and same(rows.find([3], digests([3]))[0], sample(3))
    copy = pickle.loads(pickle.dumps(store))
    assert copy.rows("f", 800).find([3], digests([3])) == [None]  # its writer lives: not indexed yet
    store.close()
    assert same(TokenStore(tmp_path, "n", 1 << 30).rows("f", 800).find([3], digests([3]))[0], sample(3))


@given(st.data())
def test_a_byte_that_has_changed_is_never_learned(tmp_path_factory, data):
    """Wherever it is: what comes back is right or missing, the shard goes, and its rows can be written again."""
    folder = tmp_path_factory.mktemp("flipped")
    filled(folder)
    (path,) = shards(folder)
    victim = data.draw(st.sampled_from([path, path.with_suffix(".index"), next(path.parent.glob("*.rows"))]))
    content = bytearray(victim.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    victim.write_bytes(content)
    store = TokenStore(folder, "n", 1 << 30)
    rows = store.rows("f", 800)
    found = rows.read(range(ROWS))
    assert all(one is None or same(one, sample(i)) for i, one in enumerate(found))
    missing = [i for i, one in enumerate(found) if one is None]
    found = rows.find(missing, digests(missing))
    assert all(one is None or same(one, sample(i)) for i, one in zip(missing, found, strict=True))
    if victim.suffix == ".tokens":
        assert store.damaged and str(path) in store.damaged[0] and not path.exists()
    missing = [i for i, one in enumerate(rows.read(range(ROWS))) if one is None]
    rows.add(missing, digests(missing), [sample(i) for i in missing])
    assert all(same(one, sample(i)) for i, one in enumerate(rows.read(range(ROWS))))


@pytest.mark.parametrize("kept", [0, 1, 39, 40, 200, -1, -30])
def test_a_shard_that_was_cut_off_gives_what_is_whole(tmp_path, kept):
    filled(tmp_path)
    (path,) = shards(tmp_path)
    path.with_suffix(".index").unlink()  # its writer was killed
    size = kept if kept >= 0 else path.stat().st_size + kept
    os.truncate(path, size)
    rows = TokenStore(tmp_path, "n", 1 << 30).rows("f", 800)
    found = rows.find(range(ROWS), digests(range(ROWS)))
    whole = [i for i, one in enumerate(found) if one is not None]
    assert all(same(found[i], sample(i)) for i in whole)
    assert whole == list(range(len(whole)))
    assert (len(whole) >= ROWS - 2) == (kept < 0)


def test_files_that_are_cut_off_while_they_are_open_cost_only_what_is_gone(tmp_path):
    filled(tmp_path)
    (path,) = shards(tmp_path)
    store = TokenStore(tmp_path, "n", 1 << 30)
    rows = store.rows("f", 800)
    assert same(rows.read([0])[0], sample(0))
    os.truncate(path, 100)
    os.truncate(next(path.parent.glob("*.rows")), 30)
    assert rows.read([ROWS - 1]) == [None], "it is looked up by its content"
    assert rows.find([ROWS - 1], digests([ROWS - 1])) == [None] and "cut off at byte" in store.damaged[0]
    rows.add([ROWS - 1], digests([ROWS - 1]), [sample(ROWS - 1)])
    assert same(rows.find([ROWS - 1], digests([ROWS - 1]))[0], sample(ROWS - 1))


def test_a_file_of_somebody_else_in_a_cache_stays(tmp_path):
    for folder in ("n", "theirs"):
        (tmp_path / folder).mkdir()
        for name in ("mine.tokens", "mine.index", "notes.txt"):
            (tmp_path / folder / name).write_text("mine")
    (tmp_path / ".lock").write_text("mine")
    filled(tmp_path, limit=1)
    store = TokenStore(tmp_path, "n", 1)
    store.rows("f", 800)
    store._evict()
    assert not shards(tmp_path / "n") and not list(tmp_path.glob("n/????????.tokens"))
    assert {path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".rows"} == {"mine"}


def test_only_the_shard_that_is_damaged_is_written_again(tmp_path):
    filled(tmp_path, range(20))
    (first,) = shards(tmp_path)
    filled(tmp_path, range(20, ROWS))
    (second,) = set(shards(tmp_path)) - {first}
    content = bytearray(first.read_bytes())
    content[52] ^= 1  # in the payload of the first record
    first.write_bytes(content)
    rows = TokenStore(tmp_path, "n", 1 << 30).rows("f", 800)
    assert [one is None for one in rows.read(range(ROWS))] == [True] * 20 + [False] * 20
    assert not first.exists() and second.exists()


def test_the_store_stays_within_its_size_and_what_was_used_longest_ago_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(token_store, "SHARD", 4000)
    limit = 30_000
    for turn in range(8):
        store = TokenStore(tmp_path, "n", limit)
        rows = store.rows("f", 800)
        numbers = list(range(turn * 100, turn * 100 + 100))
        rows.add(numbers, digests(numbers), [sample(i, 5) for i in numbers])
        store.close()
        for path in shards(tmp_path):  # one turn later
            stat = path.stat()
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - 10**9))
        rows = TokenStore(tmp_path, "n", limit).rows("f", 800)
        assert all(rows.read(range(10)) if turn < 2 else [True])
        assert sum(path.stat().st_size for path in shards(tmp_path)) <= limit + 4000
    found = rows.read(range(8 * 100))
    assert all(one is None or same(one, sample(i, 5)) for i, one in enumerate(found))
    assert found[0] is None and found[-1] is not None
    assert len(list(tmp_path.glob("*/*.index"))) == len(shards(tmp_path))


def _add_and_die(folder, barrier):
    store = TokenStore(folder, "n", 1 << 30)
    rows = store.rows("f", 800)
    barrier.wait()
    for i in range(ROWS):
        rows.add([i], digests([i]), [sample(i)])
    store._writing[0].flush()
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_that_write_at_once_and_are_killed_leave_what_they_wrote(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    writers = [context.Process(target=_add_and_die, args=(tmp_path, barrier)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [-signal.SIGKILL] * 3
    rows = TokenStore(tmp_path, "n", 1 << 30).rows("f", 800)
    assert all(same(one, sample(i)) for i, one in enumerate(rows.read(range(ROWS))))
    assert all(same(one, sample(i)) for i, one in enumerate(rows.find(range(ROWS), digests(range(ROWS)))))


def test_a_full_disk_slows_a_run_and_does_not_end_it(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        store = TokenStore(disk, "n", 1 << 30)
        rows = store.rows("f", 800)
        for i in range(200):
            rows.add([i], digests([i]), [sample(i, 2000)])
        assert any("No space left" in line for line in store.damaged)
        assert all(one is None or same(one, sample(i, 2000)) for i, one in enumerate(rows.read(range(200))))
        store.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


class TestRows:
    """The store below the rows of a run: a stale one can never be used."""

    @staticmethod
    def rows(path, cache, **settings):
        data = DataSection(sources=(Source(path=str(path)),), cache=str(cache), **settings)
        encoder = Encoder(chats.vocabulary(), "chatml", data.loss, data.context_length, data.overlong)
        return Rows(data.sources, data, encoder)

    @staticmethod
    def of(rows):
        found = rows.outcomes([SampleId(i, 0, i) for i in range(rows.lengths[0])])
        for store in rows.stores.values():
            store.close()
        return [(one.tokens.tolist(), one.weights.tolist()) for one in found]

    @pytest.fixture
    def path(self, tmp_path):
        lines = [json.dumps({"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "ja"}]})
                 for i in range(12)]  # fmt: skip
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(lines) + "\n")
        return path

    def test_what_one_run_has_encoded_the_next_one_does_not(self, path, tmp_path):
        first, second = self.rows(path, tmp_path / "cache"), self.rows(path, tmp_path / "cache")
        expected = self.of(first)
        second = self.rows(path, tmp_path / "cache")
        assert self.of(second) == expected
        assert (first.encoded, second.encoded) == (12, 0)

    @pytest.mark.parametrize(
        "change",
        [{"context_length": 4095}, {"loss": LossWeights(roles={"user": 1.0})}, {"overlong": "truncate"},
         {"role_names": {"bot": "assistant"}}],
    )  # fmt: skip
    def test_another_setting_finds_nothing_of_the_first(self, path, tmp_path, change):
        self.of(self.rows(path, tmp_path / "cache"))
        other = self.rows(path, tmp_path / "cache", **change)
        assert self.of(other) == self.of(self.rows(path, tmp_path / "none", **change))
        assert other.encoded == 12

    def test_another_version_of_the_code_finds_nothing_of_the_first(self, path, tmp_path, monkeypatch):
        self.of(self.rows(path, tmp_path / "cache"))
        monkeypatch.setattr("dist_sft.data.encoding.code_fingerprint", lambda: "newer")
        newer = self.rows(path, tmp_path / "cache")
        self.of(newer)
        assert newer.encoded == 12

    def test_only_the_row_that_was_changed_is_encoded_again(self, path, tmp_path):
        self.of(self.rows(path, tmp_path / "cache"))
        path.write_text(path.read_text().replace('"5"', '"five"'))
        changed = self.rows(path, tmp_path / "cache")
        assert self.of(changed) == self.of(self.rows(path, tmp_path / "none"))
        assert changed.encoded == 1

    def test_an_equal_row_elsewhere_is_dropped_under_its_own_place(self, path, tmp_path):
        path.write_text("{\n")
        found, encoded = [], []
        for name in ("a.jsonl", "b.jsonl"):
            (tmp_path / name).write_text("\n" * len(found) + "{\n")
            rows = self.rows(tmp_path / name, tmp_path / "cache", bad_rows="drop")
            found += [str(entry.where) for entry in rows.encode(0, [SampleId(0, 0, 0)]).entries]
            found += [str(one.where) for one in rows.outcomes([SampleId(0, 0, 0)])]
            encoded.append(rows.encoded)
            rows.stores[Layout("auto")].close()
        assert found == [f"{tmp_path}/a.jsonl:1"] * 2 + [f"{tmp_path}/b.jsonl:3"] * 2
        assert encoded == [1, 0]

    def test_two_lists_of_one_file_are_two_sets_of_rows(self, tmp_path):
        def chat(text):
            return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]}

        path = tmp_path / "both.json"
        path.write_text(json.dumps({"train": [chat("train 0"), chat("train 1")], "test": [chat("test 0")]}))
        seen = {}
        for split in ("train", "test"):
            data = DataSection(sources=(Source(path=str(path), split=split),), cache=str(tmp_path / "cache"))
            encoder = Encoder(chats.vocabulary(), "chatml", data.loss, data.context_length, data.overlong)
            seen[split] = self.of(rows := Rows(data.sources, data, encoder))
            assert rows.encoded == len(seen[split])
        assert seen["test"][0] not in seen["train"]

    def test_slices_of_a_saved_set_are_other_rows(self, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
        (tmp_path / "repo").mkdir()
        lines = [json.dumps({"prompt": "?", "completion": f"row {i}"}) for i in range(10)]
        (tmp_path / "repo" / "train.jsonl").write_text("\n".join(lines))
        found = []
        for split in ("train[:80%]", "train[80%:]"):
            data = DataSection(
                sources=(Source(path=f"hub:{tmp_path}/repo", split=split),), cache=str(tmp_path / "cache")
            )
            encoder = Encoder(chats.vocabulary(), "chatml", data.loss, data.context_length, data.overlong)
            rows = Rows(data.sources, data, encoder)
            found.append((rows.fingerprints, self.of(rows)))
        assert found[0][0] != found[1][0]
        assert len(found[1][1]) == 2 and not [one for one in found[1][1] if one in found[0][1]]

    def test_a_file_that_is_edited_under_a_run_is_refused_and_nothing_of_it_is_kept(self, path, tmp_path):
        rows = self.rows(path, tmp_path / "cache")
        original = path.read_bytes()
        later = pickle.loads(pickle.dumps(rows))
        stat = path.stat()
        path.write_bytes(original.replace(b"ja", b"no"))
        for one in (rows, later):
            with pytest.raises(DataError, match="the file has changed since the run first saw it"):
                one.outcomes([SampleId(0, 0, 0)])
        path.write_bytes(original)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert self.of(self.rows(path, tmp_path / "cache")) == self.of(self.rows(path, tmp_path / "none"))

    def test_files_of_one_name_size_and_date_in_two_folders_are_two_files(self, path, tmp_path, monkeypatch):
        text, found = path.read_text(), []
        for folder, content in (("a", text), ("b", text.replace("ja", "no"))):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "train.jsonl").write_text(content)
            os.utime(tmp_path / folder / "train.jsonl", (10**9, 10**9))
            monkeypatch.chdir(tmp_path / folder)
            found.append(self.of(self.rows("train.jsonl", tmp_path / "cache")))
        assert found[0] != found[1]

    def test_decoded_row_groups_with_a_changed_byte_are_decoded_again(self, tmp_path):
        table = pa.Table.from_pylist([{"prompt": "?", "completion": f"row {i}"} for i in range(20)])
        pq.write_table(table, tmp_path / "rows.parquet", row_group_size=5)
        os.utime(tmp_path / "rows.parquet", (10**9, 10**9))
        expected = self.of(self.rows(tmp_path / "rows.parquet", tmp_path / "cache"))
        groups = sorted(tmp_path.glob("cache/row_groups/*.arrow"))
        assert len(groups) == 4
        content = bytearray(groups[0].read_bytes())
        content[content.index(b"row ")] ^= 1
        groups[0].write_bytes(content)
        for store in tmp_path.glob("cache/tokens/*/*"):
            store.unlink()
        self.rows(tmp_path / "rows.parquet", tmp_path / "cache", cache_size=2 * groups[1].stat().st_size)
        assert len(list(tmp_path.glob("cache/row_groups/*.arrow"))) == 2
        assert self.of(self.rows(tmp_path / "rows.parquet", tmp_path / "cache")) == expected
