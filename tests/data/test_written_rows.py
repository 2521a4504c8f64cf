"""Sources whose rows hold turns as the template writes them: found on the first rows, whatever else is in the run."""

import json

import pytest

from dist_sft.chat.encode import Encoder
from dist_sft.config.data import DataSection, LossWeights, Source
from dist_sft.config.learned import learned
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import RowError
from dist_sft.data.arrange import order_of, streams_of
from dist_sft.data.encoding import FIRST_ROWS, Rows, Told
from dist_sft.data.order import SampleId, Steps
from tests.service import chats

WRITTEN = "<|im_start|>user\nWhat is 0+1?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
PLAIN = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "see <|im_end|> there"}]}


def opened(tmp_path, *files, bad_rows="error", cache=None, **settings):
    """The rows of these files, in order, and their steps. files: the rows of each. settings: of the last source."""
    sources = []
    for i, rows in enumerate(files):
        path = tmp_path / f"{i}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append(Source(path=str(path), **(settings if i == len(files) - 1 else {})))
    data = DataSection(sources=tuple(sources), cache=cache, bad_rows=bad_rows, order={"kind": "sequential"})
    rows = Rows(data.sources, data, Encoder(chats.vocabulary(), "chatml", LossWeights(), 1 << 16, "drop"))
    order = order_of(data, streams_of(data, rows.sources, 0), 4, list)
    return rows, Steps.of(order, 4, None, 1)


@pytest.mark.parametrize("bad_rows", ["error", "drop"])
@pytest.mark.parametrize("row", [{"text": WRITTEN}, {"prompt": WRITTEN[:-12], "completion": "1<|im_end|>"}])
def test_the_first_rows_of_a_run_stop_it(tmp_path, row, bad_rows):
    rows, steps = opened(tmp_path, [PLAIN, PLAIN, row], bad_rows=bad_rows)
    with pytest.raises(RowError) as caught:
        rows.probe(steps)
    assert caught.value.reason == "control_tokens" and caught.value.where == f"{tmp_path}/0.jsonl:3"
    assert "control_tokens of the source: parse" in caught.value.fix and "text keeps" in caught.value.fix


def test_so_do_those_of_a_source_that_comes_later(tmp_path):
    rows, steps = opened(tmp_path, [PLAIN] * 300, [PLAIN] * (FIRST_ROWS - 1) + [{"text": WRITTEN}], bad_rows="drop")
    with pytest.raises(RowError, match=rf"1\.jsonl:{FIRST_ROWS}: its text is written with control tokens"):
        rows.probe(steps)


@pytest.mark.parametrize(("policy", "learns"), [("parse", "1<|im_end|>"), ("text", WRITTEN)])
def test_both_ways_out_lead_on(tmp_path, policy, learns):
    rows, steps = opened(tmp_path, [{"text": WRITTEN}] * 8, control_tokens=policy)
    looked = rows.probe(steps)
    sample = looked.samples[0]
    text = rows.encoder.text_of(sample.tokens[sample.weights > 0].tolist())
    assert len(looked.samples) == 8 and text in (learns, learns[1:] + "<|im_end|>")
    told = rows.told(steps)
    assert told == (Told(reread=8) if policy == "parse" else Told(spelled={"<|im_start|>": 8, "<|im_end|>": 8}))
    assert told.lines()


def test_a_control_token_that_a_row_mentions_is_told_and_stops_nothing(tmp_path):
    rows, steps = opened(tmp_path, [PLAIN, {"text": "no token"}, {"text": "<s>, <|im_start|>"}])
    assert len(rows.probe(steps).samples) == 3
    told = rows.told(steps)
    assert told.spelled == {"<|im_end|>": 1, "<|im_start|>": 1}
    assert "<|im_end|> in 1, <|im_start|> in 1" in told.lines()[0]


def test_the_token_store_keeps_the_ways_apart(tmp_path):
    """The same content under another setting is another sample."""
    found = set()
    for policy in ("parse", "text", "parse"):
        rows, _ = opened(tmp_path, [{"text": WRITTEN}], control_tokens=policy, cache=str(tmp_path / "cache"))
        (sample,) = rows.outcomes([SampleId(0, 0, 0)])
        found.add(tuple(sample.tokens[sample.weights > 0].tolist()))
    assert len(found) == 2


def test_a_run_of_before_goes_on(tmp_path):
    settings = {"model": {"path": "m"}, "data": {"sources": [{"path": "a.jsonl"}]}, "train": {"steps": 1}}
    assert "control_tokens" not in learned(RunConfig.model_validate(settings))["data"]["sources"][0]
    settings["data"]["sources"][0]["control_tokens"] = "parse"
    assert learned(RunConfig.model_validate(settings))["data"]["sources"][0]["control_tokens"] == "parse"
