"""Rows of one shape take short ways through the encoder. They end where the long ways do."""

import random

import pytest

from dist_sft.chat.conversation import Conversation, Message
from dist_sft.chat.formats import parse_row
from dist_sft.chat.render import Renderer
from dist_sft.config.data import LossWeights
from dist_sft.core.errors import RowError
from tests.chat import oracle, real
from tests.chat.test_masks import TEMPLATES, encoder


def result(one):
    return (one.reason, one.what) if isinstance(one, RowError) else (one.tokens.tolist(), one.weights.tolist())


def the_long_way(enc, items, monkeypatch):
    """Each row alone: marked and rendered twice, its answers found by offsets."""
    with monkeypatch.context() as patch:
        patch.setattr(type(enc._locate), "_skeleton", lambda self, conversation: None)
        patch.setattr(type(enc._texts), "between_controls", lambda self, *_: None)
        return [result(enc.encode_batch([item])[0]) for item in items]


@pytest.mark.registry
@pytest.mark.parametrize("reasoning", [True, False])
@pytest.mark.parametrize("model", real.MODELS)
def test_real_rows(model, reasoning, tokenizer_folder, shared_data, real_rows, monkeypatch):
    enc = real.encoder_of(tokenizer_folder(model), reasoning=reasoning)
    files = ("lf_v1_sft_demo.jsonl", "fc_dummy_conversation.json", "gpteacher_roleplay.json", real.TOOL_FILES[0])
    items = real.items(shared_data, files, real_rows)
    short = [result(one) for one in enc.encode_batch(items)]
    assert short == the_long_way(enc, items, monkeypatch)


@pytest.mark.registry
@pytest.mark.parametrize("model", real.MODELS)
def test_most_real_rows_need_no_offsets(model, tokenizer_folder, shared_data, monkeypatch):
    """Or the short way is closed without anybody noticing: it is a third of the time of a row."""
    enc = real.encoder_of(tokenizer_folder(model))
    found = [0]
    between = type(enc._texts).between_controls

    def counted(self, *arguments):
        span = between(self, *arguments)
        found[0] += span is None
        return span

    monkeypatch.setattr(type(enc._texts), "between_controls", counted)
    rows = oracle.read(shared_data / "lf_v1_sft_demo.jsonl", 40)
    samples = enc.encode_batch([parse_row(row) for row in rows])
    assert not any(isinstance(sample, RowError) for sample in samples)
    assert found[0] <= 2


@pytest.mark.parametrize("name", TEMPLATES)
def test_rows_of_few_shapes_and_awkward_texts(tiny, name, monkeypatch):
    enc, dice = encoder(tiny, TEMPLATES[name], LossWeights(roles={"assistant": 1.0, "user": 0.1})), random.Random(0)
    words = ("a", "b c", "", " x", "x ", "assistant", "<|im_end|>", "<think>", "\n", "é", "assistant\n", "\n\n")
    items = []
    for _ in range(300):
        turns = []
        for role in ("user", "assistant") * dice.choice((1, 2)):
            reasoning = "r" if role == "assistant" and dice.random() < 0.3 else None
            weight = dice.choice([None, None, 0.0, 0.5])
            turns.append(Message(role, "".join(dice.choices(words, k=2)), reasoning, weight=weight))
        items.append(Conversation(tuple(turns)))
    short = [result(one) for batch in range(0, 300, 50) for one in enc.encode_batch(items[batch : batch + 50])]
    assert short == the_long_way(enc, items, monkeypatch)
    assert sum(isinstance(one[0], list) for one in short) > 30


class TestSandbox:
    """What templates may not do, they may not do by the short way either."""

    @pytest.mark.parametrize(
        "source",
        ["{{ messages[0].content.__class__ }}", "{{ messages[0].__class__ }}", "{{ ''.format.__self__ }}",
         "{{ '{0.__class__}'.format(messages[0].content) }}", "{{ messages[0].content.format_map({}) and 1 }}",
         "{% set ns = namespace(x=1) %}{{ ns.__class__.__mro__ }}", "{{ messages[0].update({'role': 'x'}) }}",
         "{% for m in messages %}{{ loop.__class__.__mro__ }}{% endfor %}", "{{ messages[0]['content'].__len__() }}",
         "{{ messages.append(1) }}"],
    )  # fmt: skip
    def test_no_way_to_python(self, source):
        conversation = Conversation((Message("user", "{0.__class__}"), Message("assistant", "b")))
        try:
            text = Renderer(source, {}).render(conversation)
        except RowError:
            return
        assert "class" not in text.replace("{0.__class__}", "") and "object at" not in text

    def test_a_name_that_is_not_there_is_undefined(self):
        source = "{{ messages[0].nope is defined }}{{ messages[0].items is defined }}{{ messages[0].nope or 'x' }}"
        conversation = Conversation((Message("user", "a"),))
        assert Renderer(source, {}).render(conversation) == "FalseTruex"

    def test_namespaces_loops_and_texts_work_as_ever(self):
        source = (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index0 %}"
            "{{ m.content.upper().startswith('A') }}{{ loop.last }}{% endfor %}{{ ns.n }}{{ ns.gone is defined }}"
        )
        conversation = Conversation((Message("user", "a"), Message("assistant", "b")))
        assert Renderer(source, {}).render(conversation) == "TrueFalseFalseTrue1False"
